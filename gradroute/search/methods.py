"""The methods of a search that find a mask without trials, and what every method costs, in updates."""

from dataclasses import asdict, replace

from gradroute.config.auto import AutoConfig
from gradroute.config.overrides import literal
from gradroute.config.schema import SplitConfig
from gradroute.errors import UserError
from gradroute.search.budget import spent
from gradroute.search.found import Found, overrides_to, read, unrouted, write
from gradroute.search.space import Overrides
from gradroute.search.study import Search
from gradroute.search.unlabelled_groups import regrouped

DESIGNING = ("pilot", "learned")  # methods without trials, each with a folder of its mask
STUDIES = {"search": "tpe", "random": "random"}  # methods by the study of their trials


def _resets(search: Search) -> Overrides:
    """Return overrides that take back the shorthand `split`, whose regions would replace those that are found."""
    keys = [one.partition("=")[0].lstrip("+") for one in search.command([], True)]
    return [f"{key}={literal(getattr(SplitConfig(), key.removeprefix('split.')))}" for key in keys
            if key.startswith("split.")]  # fmt: skip


def overrides_of(search: Search, found: Found) -> Overrides:
    """Return the overrides that give a final run the mask that was found in place of the hand-made one."""
    resets, config = _resets(search), search.config([], True)
    settings = found.details.get("settings", {})
    if not settings.get("labels", True):
        config = regrouped(config, search.folder / found.method, found.groups)
    return [*resets, *overrides_to(search.config(resets, True), found.applied(config))]


def control(search: Search) -> Overrides:
    """Return the overrides of the hand-made mask without routes."""
    resets = _resets(search)
    return [*resets, *overrides_to(search.config(resets, True), unrouted(search.config([], True)))]


def designs(search: Search) -> dict[str, Overrides]:
    """Return the overrides of every mask that was found without trials, by method."""
    found = {method: read(search.folder / method) for method in DESIGNING}
    return {method: overrides_of(search, mask) for method, mask in found.items() if mask is not None}


def spending(search: Search) -> dict[str, int]:
    """Return the updates that each method has made, without the finals."""
    found = {method: spent(search.trials(name)) for name, method in STUDIES.items()}
    masks = {method: read(search.folder / method) for method in DESIGNING}
    return {method: updates for method, updates in found.items() if updates} | {
        method: mask.updates for method, mask in masks.items() if mask is not None
    }


def design(search: Search) -> None:
    """Find the mask of a method without trials, unless it was found before; others do nothing.

    Raises: UserError for a problem or a budget that the method cannot work with, before anything is trained.
    """
    method, budget = search.search.method, search.search.budget
    if method not in DESIGNING:
        return
    settings = asdict(getattr(search.search, method))
    if (before := read(search.folder / method)) is not None:
        if before.details.get("settings") != settings:
            fault = f"has a mask of another search.{method}"
            raise UserError(f"{search.folder / method}: {fault}; set another search.name=")
        return
    from gradroute.search.learned import Learned
    from gradroute.search.unlabelled import piloted  # imported late: torch takes seconds
    from gradroute.training.devices import settle_precision

    config, folder = search.config([], True), search.folder / method
    settle_precision(config)
    if method == "pilot":
        auto: AutoConfig = search.search.pilot
        found = piloted(config, auto, folder, search.say, budget)
        config = config if auto.labels else regrouped(config, folder, found.groups)
    else:
        found = Learned(config, search.search.learned, budget).find(folder)
    found = replace(found, details={"settings": settings})
    write(found, found.applied(config), folder)
    search.say(found.why)
