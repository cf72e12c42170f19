"""Find groups without labels: train for a moment, cluster the data points' gradients, and compare with a placebo."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import torch

from gradroute.config.auto import CLUSTER, AutoConfig
from gradroute.config.doors import TARGET
from gradroute.config.schema import Config, GroupConfig
from gradroute.config.targets import build
from gradroute.data.images.dataset import ImageDataset
from gradroute.errors import UserError
from gradroute.records.atomic import write_atomically
from gradroute.routing import Site
from gradroute.routing.sites import observed
from gradroute.search.clusters import clustered, nearest, rand_index, sketches
from gradroute.search.pilot import Pilot
from gradroute.search.signals import CHUNK
from gradroute.search.unlabelled_groups import FOLDER, regrouped
from gradroute.tasks.images import ImageTask

RECORD = "clusters.json"
ONE = "every_point"  # the only group while there are no others


def unlabelled(config: Config, auto: AutoConfig, folder: Path) -> tuple[Config, AutoConfig]:
    """Return the configuration with clusters of gradients as its groups, and the settings of its pilot.

    The clusters are written to the folder of the mask. Half of a pilot's share goes to the training before the points
    are clustered, the other half to the pilot with these groups.

    Raises: UserError for data that take no metadata, or if the clusters are no better than those of shuffled gradients.
    """
    if not (folder / FOLDER / RECORD).exists():
        _find(config, auto, folder)
    count = json.loads((folder / FOLDER / RECORD).read_text())["clusters"]
    return regrouped(config, folder, [str(n) for n in range(count)]), replace(auto, share=auto.share / 2)


def _find(config: Config, auto: AutoConfig, folder: Path) -> None:
    dataset = build(config.dataset, "dataset")
    if not isinstance(dataset, ImageDataset) or config.dataset.get("metadata", "") is not None:
        name = config.dataset[TARGET].rpartition(".")[2]
        right = "a data set of images with metadata=null, such as mnist or images, whose metadata the clusters become"
        raise UserError(f"routing.auto.labels=false: {name} cannot take clusters; give {right}")
    single = replace(config.routing, groups={ONE: GroupConfig(rest=True)}, labelled_fraction=1.0)
    trained = Alone(replace(config, routing=single), replace(auto, share=auto.share / 2))
    trained.train(trained.updates, 0)
    task = trained.task
    assert isinstance(task, ImageTask)  # which has such data
    site = min(trained.candidates, key=lambda one: one.units).sites[0]
    train = sketched(task, site, True, config.seed)
    drawn = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))[: 2 * auto.points]]
    found = clustered(drawn, auto.clusters, config.seed)
    if not found.real:
        shares = f"{found.share:.3f} of the variance, and those of shuffled gradients up to {max(found.placebos):.3f}"
        fault = f"{len(found.centres)} clusters of gradients explain {shares}: there are no groups to find"
        raise UserError(f"routing.auto.labels=false: {fault}; give groups")
    parts = {"train": nearest(train, found.centres)}
    parts["test"] = nearest(sketched(task, site, False, config.seed), found.centres)
    labels = task.data.train_labels.cpu()
    record = {
        "clusters": len(found.centres), "site": site.name, "stability": found.stable, "explained": found.share,
        "explained_placebos": found.placebos, "rand_index_with_labels": rand_index(parts["train"], labels),
    }  # fmt: skip
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for (name, own), whole in zip(parts.items(), dataset.load(), strict=True):
        rows = [[CLUSTER], *([str(number)] for number in own.tolist()), *[["0"]] * (len(whole.labels) - len(own))]
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)  # points beyond a limit are not used
        write_atomically(folder / FOLDER / f"{name}.csv", buffer.getvalue())
    write_atomically(folder / FOLDER / RECORD, json.dumps(record, indent=1) + "\n")


class Alone(Pilot):
    """A pilot of all points as one group, which only trains."""

    least_groups = 1


def sketched(task: ImageTask, site: Site, train: bool, seed: int) -> torch.Tensor:
    """Return the sketches of all training or test images at a site, `(points, numbers)`, without augmentation."""
    images = task.train_images if train else task.test_images
    labels = task.data.train_labels if train else task.data.test_labels
    objective, found = task.objective(), list[torch.Tensor]()
    with observed(task.model, [site]) as seen:
        for chosen in torch.arange(len(images), device=task.device).split(8 * CHUNK):
            groups = torch.zeros(len(chosen), dtype=torch.int64, device=task.device)
            inputs = (images[chosen], labels[chosen]) if task.classifies else (images[chosen],)
            terms = objective(*inputs, groups)
            value = torch.stack([v for term, (v, _) in terms.items() if term.group == ONE]).sum()
            activation = seen[site.name]
            (gradient,) = torch.autograd.grad(value, activation)
            last = [site.units_last(t.detach()).float().cpu() for t in (gradient, activation)]
            found.append(sketches(last[0], last[1], seed))
    return torch.cat(found)
