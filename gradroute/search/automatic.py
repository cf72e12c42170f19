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
    found = read(folder)
    if found is None:
        from gradroute.search.pilot import Pilot
        from gradroute.search.unlabelled import counted, unlabelled
        from gradroute.training.devices import settle_precision

        settle_precision(config)
        cost = 0
        if not auto.labels:
            config, auto, cost = unlabelled(config, auto, folder)
        pilot = Pilot(config, auto)
        say(f"pilot: {pilot.cost} of {pilot.whole} updates, {len(pilot.candidates)} candidate sites")
        found = counted(pilot.find(folder), cost)
        write(found, found.applied(config), folder)
    say(found.why)
    made = found.applied(config if auto.labels else regrouped(config, folder, found.groups))
    made.routing.auto = replace(auto, found=str(folder))
    return made
