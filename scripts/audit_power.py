"""Measure what audits can tell: how often they catch a suppressed model, and how often they accuse a never-trained one.

For each seed it audits a tiny model of toy stories, and counts four of the controls as if they were what is audited: a
model that hides the group down to the loss of one that never saw it, and three more models that never saw it, each of
which is judged by the others. A table in Markdown is printed. All sizes are fixed below; runs that are there
already are reused.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from gradroute.config.compose import configuration
from gradroute.records.audits import AUDITED, FLOORS, HIDDEN, REQUIRED, SUPPRESSED, read_audit, words
from gradroute.running.exit_status import guarded
from gradroute.running.runner import execute

MADE = tuple(dict.fromkeys((*REQUIRED, *FLOORS)))  # anchors
SETTINGS = (
    "experiment=stories_era/audit", "trainer=smoke", "trainer.device=cpu", "model.layers=2", "model.width=16",
    "model.heads=2", "model.hidden=24", "model.expand=[0,1]", "model.added=8", "dataset.stories=240",
    "dataset.test_stories=240", "dataset.length=48", "trainer.batch_size=16", "trainer.epochs=8", "trainer.lr=0.02",
    "audit.examples=[8]", "audit.samples=3", "audit.updates=8", "audit.batch=8", "audit.points=20", "audit.bits=[4]",
    "audit.noise=[0.1]", "audit.calibration=10", "audit.probe_points=40", "audit.probe_updates=10",
    "audit.suppress_updates=60", "audit.suppress_to=never_trained", f"audit.anchors=[{','.join(MADE)}]",
)  # fmt: skip
SUBJECTS = (SUPPRESSED, *FLOORS, AUDITED)
NUMBERS = ("second", "third", "fourth")
Words = dict[str, str | None]


def audits(seeds: Iterable[int], output: Path, overrides: Sequence[str]) -> list[dict[str, Words]]:
    """Return, for each seed, the verdict of each axis by subject; {} for a subject that an audit lacks."""
    found = []
    for seed in seeds:
        config = configuration([*SETTINGS, f"seed={seed}", f"output_dir={output}", *overrides])
        with contextlib.redirect_stdout(sys.stderr):
            (run,) = execute([config], reuse=True, watch=lambda step, rows: None)
        if isinstance(run, Exception):
            raise run
        record = read_audit(run)
        assert record is not None  # the experiment audits
        found.append({name: words(record, name) if name not in record["missing"] else {} for name in SUBJECTS})
        print(f"seed {seed}: missing {list(record['missing'])}", file=sys.stderr)
    return found


def table(found: Sequence[dict[str, Words]]) -> str:
    """Return how many seeds call each subject suppressed: by axis, by any axis, and by any axis with an attack."""
    axes = list(dict.fromkeys(axis for own in found for axis in own[AUDITED]))
    titles = ("axis", "suppressed control caught", *(f"{number} never-trained model accused" for number in NUMBERS),
              "audited model called suppressed")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]

    def count(name: str, among: Sequence[str]) -> str:
        made = [own[name] for own in found if own[name]]
        hits = sum(any(own.get(axis) == HIDDEN for axis in among) for own in made)
        return f"{hits} of {len(made)}"

    rows = [(axis.replace("_", " "), [axis]) for axis in axes]
    rows += [("**any axis with an attack**", [axis for axis in axes if axis != "behaviour"]), ("**any axis**", axes)]
    lines += [f"| {title} | {' | '.join(count(name, among) for name in SUBJECTS)} |" for title, among in rows]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip())
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--output", type=Path, default=Path("outputs/audit_power"))
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of every run, such as audit.samples=5")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    print(table(audits(seeds, arguments.output, arguments.overrides)))


if __name__ == "__main__":
    raise SystemExit(guarded(main))
