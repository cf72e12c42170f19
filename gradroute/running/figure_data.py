"""What the report draws from, as a run leaves it: arrays, and the names of groups and regions."""

import io

import numpy as np

from gradroute.records import run_folder
from gradroute.records.run_folder import RunFolder
from gradroute.routing.ablation import Ablation
from gradroute.tasks.base import Problem


def write_samples(folder: RunFolder, problem: Problem, ablations: list[Ablation]) -> None:
    """Write `samples.npz` and `figures.json`."""
    arrays, names = problem.samples(ablations)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{k: v.cpu().numpy() for k, v in arrays.items()})
    run_folder.write_atomically(folder.path / "samples.npz", buffer.getvalue())
    places = {
        name: {"sites": [site.name for site in region.sites], "units": list(region.units)}
        for name, region in problem.router.regions.items()
    }
    places |= {name: {"sites": [], "units": []} for name in problem.parts.parameter_router.regions}
    common = {"groups": problem.names, "regions": places, "ablation": problem.config.ablation.kind}
    folder.write_json("figures.json", common | names)
