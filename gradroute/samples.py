"""What a report draws: a few images through every head, encodings by label, the masks, and the names of it all."""

import io
from typing import Any

import numpy as np
import torch

from gradroute import records
from gradroute.ablation import Ablation
from gradroute.evaluation import activations_at
from gradroute.records import RunFolder
from gradroute.setup import Setup

ENCODINGS_PER_LABEL = 50


def write_samples(folder: RunFolder, setup: Setup, ablations: list[Ablation]) -> None:
    """Write `samples.npz`, with one image per label through every head, and `figures.json`, the names."""
    data = setup.data
    by_label = [torch.nonzero(data.test_labels == label).flatten() for label in data.labels]
    first = torch.cat([found[:1] for found in by_label])
    many = torch.cat([found[:ENCODINGS_PER_LABEL] for found in by_label])
    arrays: dict[str, torch.Tensor] = {
        "image_labels": data.test_labels[first],
        "encoding_labels": data.test_labels[many],
        "images": data.test_images[first],
    }
    heads = setup.heads(ablations, data.test_images[first], setup.groups.test[first])
    arrays |= {f"head/{head.name}/{head.region}": output for head, output in heads.items()}
    seen = activations_at(setup.model, setup.router.sites, data.test_images[many])
    for site in setup.router.sites:
        arrays[f"encoding/{site.name}"] = site.units_last(seen[site.name]).contiguous()
        arrays[f"mask/{site.name}"] = setup.router.masks[site.name]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{k: v.cpu().numpy() for k, v in arrays.items()})
    records.write_atomically(folder.path / "samples.npz", buffer.getvalue())
    folder.write_json("figures.json", _names(setup))


def _names(setup: Setup) -> dict[str, Any]:
    """What the report must know beside the numbers."""
    data = setup.data
    owner = {label: setup.groups.test[data.test_labels == label].unique().tolist() for label in data.labels}
    return {
        "groups": setup.groups.names,
        "regions": {
            name: {"sites": [s.name for s in region.sites], "units": list(region.units)}
            for name, region in setup.regions.items()
        }
        | {name: {"sites": [], "units": []} for name in setup.parts.parameter_router.regions},
        "label_noun": data.label_noun,
        "labels": {g: [x for x in data.labels if owner[x] == [i]] for i, g in enumerate(setup.groups.names)},
        "shape": list(data.shape),
        "ablation": setup.config.ablation.kind,
    }
