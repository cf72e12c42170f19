"""`routing=auto`: find a mask by a pilot, and give a run the mask and the evidence for it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gradroute.config.identity import config_hash
from gradroute.config.schema import Config
from gradroute.search.found import read, write
from gradroute.search.unlabelled_groups import regrouped

PILOTS = "pilots"  # folder of found masks, below output_dir


def settled(config: Config, say: Callable[[str], None] = print) -> Config:
    """Return a configuration with the mask that a pilot found in the place of `routing.auto`; others as they are.

    The mask is kept in a folder below `output_dir`, where the same command finds it again.

    Raises: UserError for a problem that a pilot cannot be made of, before anything is trained.
    """
    auto = config.routing.auto
    if auto is None or auto.found is not None:
        return config
    folder = Path(config.output_dir) / PILOTS / f"{config.name}_{config_hash(config)}_seed{config.seed}"
    found = kept = read(folder)
    if found is None:
        from gradroute.search.unlabelled import piloted  # imported late: torch takes seconds
        from gradroute.training.devices import settle_precision

        settle_precision(config)
        found = piloted(config, auto, folder, say)
    made = found.applied(config if auto.labels else regrouped(config, folder, found.groups))
    if kept is None:
        write(found, made, folder)
    say(found.why)
    made.routing.auto = replace(auto, found=str(folder))
    return made
