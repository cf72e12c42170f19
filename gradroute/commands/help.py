"""The text of `gradroute-run --help`: every experiment with a short description, and every option of every group."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from gradroute.comparison.runs import natural

USAGE = """gradroute-run: train a network with gradient routing and record what it learned where

gradroute-run experiment=mnist_split                  the main experiment
gradroute-run trainer=smoke                           the same in seconds, to see that it works
gradroute-run seeds=3                                 three seeds, and their comparison
gradroute-run -m seed=0,1,2 routing=mnist_halves,none a sweep
gradroute-run rerun=outputs/mnist_split/RUN           repeat a run from its folder
gradroute-run resume=outputs/mnist_split/RUN          resume a run that was interrupted
gradroute-run --config-dir my_conf experiment=mine    add a folder of your own configurations
gradroute-run --cfg job                               print the whole configuration
gradroute-run --version                               versions, device, precision and threads, for a bug report
gradroute-run --hydra-help                            the options of Hydra itself
"""
WIDTH = 110
END = "Every key is an override: trainer.lr=0.001, model.hidden=[256]. conf/README.md describes each."


def _options(folders: Sequence[Path], group: str) -> Iterator[tuple[str, Path]]:
    """Yield the name and the file of each option of a group, except those that begin with `_`."""
    for folder in folders:
        for path in sorted((folder / group).rglob("*.yaml")):
            parts = path.relative_to(folder / group).with_suffix("").parts
            if not any(part.startswith("_") for part in parts):
                yield "/".join(parts), path


def first_comment(path: Path) -> str:
    """Return the first comment of a YAML file that is not a Hydra directive; empty if there is none."""
    lines = [line for line in path.read_text("utf-8", "replace").splitlines() if line.startswith("#")]
    said = [line.lstrip("# ") for line in lines if not line.startswith("# @package")]
    return said[0] if said else ""


def help_text(folders: Sequence[Path]) -> str:
    """Return the help for the configurations in these folders, of which the first is the package's."""
    lines = [USAGE, "Experiments (experiment=NAME), with what they show and how long trainer=fast takes on two cores:"]
    found = {name: first_comment(path) for name, path in _options(folders, "experiment")}
    width = max(map(len, found))
    for name in sorted(found, key=natural):
        said = textwrap.wrap(found[name], WIDTH - width - 4) or [""]
        lines += [f"  {name:{width}}  {said[0]}", *(f"  {'':{width}}  {more}" for more in said[1:])]
    lines += ["", "Groups (group=option):"]
    groups = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}
    for group in sorted(groups - {"experiment", "search", "hydra"}):
        names = ", ".join(dict.fromkeys(name for name, _ in _options(folders, group)))
        lines += textwrap.wrap(f"{group}: {names}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join([*lines, "", END])
