"""Find groups without labels: train for a moment, cluster the data points' gradients, and compare with a placebo."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gradroute.config.auto import CLUSTER, AutoConfig, cluster_names, named_clusters
from gradroute.config.doors import TARGET
from gradroute.config.schema import Config, GroupConfig
from gradroute.config.targets import build
from gradroute.data.images.dataset import ImageDataset
from gradroute.data.text.datasets import TextDataset
from gradroute.errors import UserError
from gradroute.models.layer_parts import Layered
from gradroute.records.atomic import write_atomically
from gradroute.routing import Site
from gradroute.search.clusters import clustered, nearest, rand_index
from gradroute.search.found import Found
from gradroute.search.pilot import Pilot
from gradroute.search.signals import narrowest
from gradroute.search.sketching import sketched
from gradroute.search.unlabelled_groups import FOLDER, regrouped
from gradroute.tasks.base import Task
from gradroute.tasks.images import ImageTask

RECORD = "clusters.json"
ONE = "every_point"  # the only group while there are no others
KINDS = 20  # values of a column that may be labels, at most


def unlabelled(config: Config, auto: AutoConfig, folder: Path) -> tuple[Config, AutoConfig, int]:
    """Return the configuration with clusters of gradients as its groups, the settings of its pilot, and what they cost.

    The clusters are written to the folder of the mask. Half of a pilot's share goes to the training before the points
    are clustered, the other half to the pilot with these groups. The cost is in updates, and counts the gradients of
    all points, by which they are grouped, as an epoch.

    Raises: UserError for data that take no metadata, or if the clusters are no better than those of shuffled gradients.
    """
    if not (folder / FOLDER / RECORD).exists():
        _find(config, auto, folder)
    record = json.loads((folder / FOLDER / RECORD).read_text())
    return regrouped(config, folder, record["groups"]), replace(auto, share=auto.share / 2), record["updates"]


def piloted(
    config: Config, auto: AutoConfig, folder: Path, say: Callable[[str], None], budget: int | None = None
) -> Found:
    """Find a mask by a pilot; without labels, for clusters of gradients, whose cost is counted, too.

    Args:
        folder: of the mask and its evidence. budget: updates that it may cost, None for any number.

    Raises: UserError for a problem that a pilot cannot be made of, or a budget below its cost, before the pilot trains.
    """
    cost = 0
    if not auto.labels:
        config, auto, cost = unlabelled(config, auto, folder)
    pilot = Pilot(config, auto)
    if budget is not None and pilot.cost + cost > budget:
        raise UserError(f"search.budget={budget}: must be {pilot.cost + cost} or more, which the pilot costs")
    say(f"pilot: {pilot.cost} of {pilot.whole} updates, {len(pilot.candidates)} candidate sites")
    found = pilot.find(folder)
    said = f"Its groups were found without labels, as clusters of gradients, at the cost of {cost} more updates."
    return replace(found, updates=found.updates + cost, why=f"{found.why}\n{said}") if cost else found


def _find(config: Config, auto: AutoConfig, folder: Path) -> None:
    dataset, names = build(config.dataset, "dataset"), named_clusters(config)
    if not isinstance(dataset, ImageDataset | TextDataset) or config.dataset.get("metadata", "") is not None:
        name = config.dataset[TARGET].rpartition(".")[2]
        right = "a data set with metadata=null, such as mnist, images or text, whose metadata the clusters become"
        raise UserError(f"{auto.key}.labels=false: {name} cannot take clusters; give {right}")
    single = replace(config.routing, groups={ONE: GroupConfig(rest=True)}, labelled_fraction=1.0, unlabelled=None,
                     left_out=[], label_noise={})  # fmt: skip
    trained = Alone(replace(config, routing=single), auto)
    updates = max(1, math.floor(trained.whole * auto.share / 2))
    trained.train(updates, 0)
    task, site = trained.task, _site(trained)
    points = sketched(task, site, ONE, config.seed)
    train = points[0]
    drawn = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))[: 2 * auto.points]]
    found = clustered(drawn, auto.clusters if names is None else [len(names)], config.seed)
    if not found.real:
        shares = f"{found.share:.3f} of the variance, and those of shuffled gradients up to {max(found.placebos):.3f}"
        fault = f"{len(found.centres)} clusters of gradients explain {shares}: there are no groups to find"
        raise UserError(f"{auto.key}.labels=false: {fault}; give groups")
    order = torch.bincount(nearest(train, found.centres), minlength=len(found.centres)).argsort(stable=True)
    centres = found.centres[order]  # the smallest first
    numbers = [nearest(own, centres) for own in points]
    epoch = trained.whole // config.trainer.epochs
    record = {
        "groups": names or cluster_names(len(centres)), "updates": updates + epoch, "site": site.name,
        "stability": found.stable, "explained": found.share, "explained_placebos": found.placebos,
        "rand_index": {name: rand_index(numbers[0], own) for name, own in _labels(task)},
    }  # fmt: skip
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, column in _columns(dataset, config, numbers).items():
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([[CLUSTER], *([number] for number in column)])
        write_atomically(folder / FOLDER / f"{name}.csv", buffer.getvalue())
    write_atomically(folder / FOLDER / RECORD, json.dumps(record, indent=1) + "\n")


def _site(trained: "Alone") -> Site:
    """Return the site whose gradients are clustered: the residual stream of the last layer, or the narrowest one.

    What documents are about is told best where their errors enter.
    """
    model = trained.task.model
    if isinstance(model, Layered) and not trained.auto.sites:
        place = model.place("residual", model.layer_count - 1)
        return Site(place.module, output=place.output)
    return narrowest(trained.task, trained.candidates).sites[0]


def _columns(
    dataset: ImageDataset | TextDataset, config: Config, numbers: Sequence[torch.Tensor]
) -> dict[str, list[int]]:
    """Return the number of every data point in the data set's order; points beyond a limit are not used, and have 0.

    Args:
        numbers: of the points to train on, to test on and, if there are any, to validate on, as `sketched` has them.
    """
    if isinstance(dataset, ImageDataset):
        counts, held_out = [len(part.labels) for part in dataset.load()], 0
    else:
        documents = dataset.documents(config.trainer.train_limit)
        counts, held_out = [len(part) for part in documents], dataset.validation_stories
    train, test = ([0] * count for count in counts)
    for column, start, own in zip((train, test, test), (0, 0, len(test) - held_out), numbers, strict=False):
        column[start : start + len(own)] = own.tolist()
    return {"train": train, "test": test}


def _labels(task: Task) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what the data say of the training points, which played no part: labels, or columns of a few values."""
    if isinstance(task, ImageTask):
        yield task.data.label_noun, task.data.train_labels.cpu()
        return
    for name, values in task.data.train.documents.columns.items():
        kinds = {value: number for number, value in enumerate(dict.fromkeys(values))}
        if 1 < len(kinds) <= KINDS:
            yield name, torch.tensor([kinds[value] for value in values])


class Alone(Pilot):
    """A pilot of all points as one group, which only trains."""

    least_groups = 1
