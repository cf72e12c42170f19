"""Measure every head in float32, and write metrics, weights and the data of the plots."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from gradroute.models.adapters import adapters_in, save_adapter
from gradroute.steps.base import RunState, Step
from gradroute.training.training import Training
from gradroute.training.weights import WEIGHTS, write_weights

SUMMARY = ("group", "head", "region", "metric", "unit", "value")


@dataclass
class Evaluate(Step):
    """Write `metrics.csv`, `summary.json`, `model.safetensors`, `samples.npz`, `figures.json` and the task's files."""

    only_measures = True

    def run(self, run: RunState) -> Iterable[Training]:
        """Measure every head and write the files."""
        task = run.task
        run.evaluate()
        for measured in task.measure_once():
            run.record("test", measured)
        for measured in task.validate(run.ablations):
            run.record("validation", measured)
        run.folder.write_metrics()
        if run.config.checkpoint.keep == "weights":
            run.folder.write(WEIGHTS, lambda path: write_weights(path, run.tensors()))
            for name in adapters_in(task.model):
                run.folder.write_folder(f"adapters/{name}", partial(save_adapter, task.model, name))
        for name, text in task.texts().items():
            run.folder.write(name, text)
        self._write_samples(run)
        headline = [{key: row[key] for key in SUMMARY} for row in run.headline()]
        agrees = "to the bit" if run.folder.manifest.get("exact", True) else "to rounding"
        run.folder.write_json("summary.json", {"headline": headline, "rerun": agrees})
        return ()

    @staticmethod
    def _write_samples(run: RunState) -> None:
        """Write `samples.npz`, the plots' arrays, and `figures.json`, the names of groups, regions and so on."""
        task = run.task
        arrays, names = task.samples(run.ablations)
        buffer = io.BytesIO()
        given = {name: array.cpu().numpy() for name, array in arrays.items()}
        np.savez_compressed(buffer, **given)  # type: ignore[arg-type]  # NumPy 2.1 stores options as arrays
        run.folder.write("samples.npz", buffer.getvalue())
        places = {
            name: {"sites": [site.name for site in region.sites], "units": list(region.units)}
            for name, region in task.router.regions.items()
        }
        places = {name: {"sites": [], "units": []} for name in task.parts.parameter_router.regions} | places
        common = {"kind": task.kind, "groups": task.names, "regions": places, "ablation": task.ablation.name}
        run.folder.write_json("figures.json", common | names)
