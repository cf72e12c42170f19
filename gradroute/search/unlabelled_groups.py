"""Groups that were found as clusters: a column of the data set's metadata, in files beside the mask."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gradroute.config.auto import cluster_groups
from gradroute.config.schema import Config

FOLDER = "clusters"  # below the folder of the mask: the data set's metadata


def regrouped(config: Config, folder: Path, groups: Sequence[str]) -> Config:
    """Return a configuration whose groups are the clusters in the folder of a mask."""
    routing = replace(config.routing, groups=cluster_groups(groups), regions={}, routes={}, unassigned="error")
    dataset = {**config.dataset, "metadata": str(folder / FOLDER)}
    return replace(config, routing=routing, dataset=dataset)
