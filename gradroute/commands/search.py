"""`gradroute-search search=…`: search for regions and weights with Optuna, over ordinary runs.

Overrides are those of `gradroute-run` and hold for every trial; `search.KEY=` sets a key of the search itself. The same
command continues a search that was stopped, and adds a worker to one that is running.
"""

import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradroute.commands.version import answered
from gradroute.errors import UserError, unknown
from gradroute.records.provenance import cores
from gradroute.running.exit_status import guarded
from gradroute.training.signals import heard

if TYPE_CHECKING:
    from gradroute.search.study import Search

HELP = """gradroute-search: search for a mask with Optuna, over ordinary runs

gradroute-search search=mnist_split                          start a search, or continue one that was stopped
gradroute-search search=mnist_split search.workers=2         use two processes on this machine
gradroute-search search=mnist_split search.random=40         compare with 40 trials of random search
gradroute-search search=mnist_split method=pilot              find a mask by one short run; also random, learned
gradroute-search search=mnist_split trainer.lr=0.001         any override of gradroute-run, for every trial
gradroute-search --config-dir my_conf search=mine            add a folder of your own configurations
gradroute-search search=mnist_split search.final.best=0      do not repeat the best trials; nothing is claimed then

searches: """


def _given(arguments: Sequence[str]) -> tuple[str, list[str], list[str], Path | None]:
    """Parse the arguments: the search's name, its overrides, its runs' overrides, and a folder of configurations."""
    from gradroute.config.compose import conf_dir, without_config_dirs

    rest, folders = without_config_dirs(arguments, ["--config-dir"])
    if folders[1:]:
        raise UserError(f"--config-dir {folders[1]}: give only one folder")
    folder = folders[0] if folders else None
    searches = sorted(p.stem for at in (conf_dir(), folder) if at for p in (at / "search").glob("*.yaml"))
    if not rest or {"-h", "--help"} & set(rest):
        print(HELP + ", ".join(searches))
        raise SystemExit(0 if rest else 2)
    if odd := [one for one in rest if "=" not in one or one.startswith("-")]:
        raise UserError(f"{odd[0]}: give key=value, such as search=mnist_split; see gradroute-search --help")
    names = [one.partition("=")[2] for one in rest if one.startswith("search=")]
    if len(names) != 1 or names[0] not in searches:
        raise unknown("search", names[0] if names else "(search=NAME is not given)", searches)
    own = ("search=", "search.", "method=")
    of_search = [one.removeprefix("search.") for one in rest if one.startswith(own[1:])]
    return names[0], of_search, [one for one in rest if not one.startswith(own)], folder


def _opened(arguments: Sequence[str]) -> "Search":
    """Open the search that the arguments describe. Raises: UserError, also if Optuna is missing."""
    from omegaconf import OmegaConf

    from gradroute.config.compose import composed
    from gradroute.search.schema import search_from

    name, changes, given, folder = _given(arguments)
    file = OmegaConf.to_container(composed([f"+search={name}"], folder)["search"])
    merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(file), OmegaConf.from_dotlist(changes)))
    search = search_from(merged)
    try:
        from gradroute.search.study import Search
    except ImportError:
        raise UserError("gradroute-search needs Optuna: pip install 'gradroute[search]'") from None
    return Search(search, given, folder)


def _work(search: "Search", command: str) -> None:
    """Do one process's share of the trials and the finals."""
    from gradroute.search import page
    from gradroute.search.finals import make

    search.work()
    while search.busy():  # another process runs the last trials
        time.sleep(0.5)
    if search.search.final.best:
        page.write(search, [], command)  # in case the finals are interrupted
        make(search)


def _each(arguments: Sequence[str], command: str, threads: int) -> None:
    """Run one worker, in a process of its own."""
    import torch

    torch.set_num_threads(threads)
    with heard():
        sys.exit(guarded(lambda: _work(_opened(arguments), command)))


def _together(arguments: Sequence[str], command: str, workers: int) -> None:
    """Run the search in several processes. Raises: SystemExit with the status of one that failed."""
    threads = max(1, cores() // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_each, args=(arguments, command, threads)) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()
    if bad := [process.exitcode for process in processes if process.exitcode]:
        raise SystemExit(bad[0] if bad[0] > 0 else 128 - bad[0])


def _search(arguments: Sequence[str]) -> None:
    search = _opened(arguments)
    from gradroute.search.methods import design

    search.try_space()
    design(search)
    search.prepare()
    command = "gradroute-search " + shlex.join(arguments)
    if search.search.workers > 1:
        _together(arguments, command, search.search.workers)
    else:
        _work(search, command)
    from gradroute.search import page
    from gradroute.search.fidelity import fidelities
    from gradroute.search.finals import results, verdict

    finals = results(search) if search.search.final.best else []
    page.write(search, finals, command)
    if search.search.pruning.rule == "halving":
        found = fidelities(search.trials("search"), search.search.pruning)
        print("\n".join(map(str, found)) or "too few finished trials to say whether their beginnings tell their ends")
    print("\n".join([*verdict(search, finals), str(search.folder / "search.html")]))


def main() -> None:
    """Entry point of `gradroute-search`."""
    with heard():
        answered(sys.argv[1:])
        sys.exit(guarded(lambda: _search(sys.argv[1:])))


if __name__ == "__main__":
    main()
