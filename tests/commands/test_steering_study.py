"""The steering study, on a few sentences and a tiny model: the runs it asks for, and its tables."""

import random
from pathlib import Path
from types import ModuleType

import pytest
from scripted import script

from gradroute.config.compose import configuration

TINY = [
    "trainer=smoke", "trainer.device=cpu", "trainer.epochs=3", "trainer.lr=0.02",
    "model.layers=2",
    "model.width=16", "model.heads=2",
    "model.hidden=24", "dataset.length=32", "dataset.test_stories=60", "dataset.vocabulary=300",
    "routing.regions.dimension.layers=[1]", "routing.regions.others.layers=[1]", "steering.layers=[1]",
    "steering.placebos=1", "steering.samples=1", "steering.tokens=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return script("steering_study")


def test_only_the_condition_differs(study: ModuleType) -> None:
    """Relatives, levels, prompts and seed are the same; the routes, or the routed word, are not."""
    routed, unrouted, placebo = (
        configuration(study.overrides("family", condition, 3, "stories.txt")) for condition in study.CONDITIONS
    )
    assert routed.steering == unrouted.steering == placebo.steering and routed.seed == placebo.seed == 3
    assert routed.routing.groups["target"].words == unrouted.routing.groups["target"].words == ["mom"]
    assert placebo.routing.groups["target"].words == ["little"]
    assert routed.routing.routes == placebo.routing.routes != unrouted.routing.routes


def test_no_word_has_two_roles(study: ModuleType) -> None:
    for name, family in study.FAMILIES.items():
        related = family.related.split()
        assert len(set(related)) == len(related) and not {family.routed, family.placebo} & set(related), name


@pytest.mark.slow
def test_the_tables_are_printed_and_runs_are_reused(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = ("mom", "little", "very", *study.FAMILIES["family"].related.split())
    stories = [f"one day the {a} saw a big {b} and ran to the park" for a in family for b in family]
    stories += ["the dog sat in the sun and was glad"] * 40
    random.Random(0).shuffle(stories)  # the last ones are the test documents
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(stories))
    numbers, folder = tmp_path / "numbers.csv", f"output_dir={tmp_path / 'runs'}"
    given = [str(tmp_path / "stories.txt"), "--family", "family", "--seeds", "1", *TINY, folder]
    study.main(given)
    printed = capsys.readouterr().out
    assert len(list((tmp_path / "runs").glob("*/*_seed0"))) == 3
    rows = [line for line in printed.splitlines() if line.startswith("| family |")]
    assert len(rows) == 2 + len(study.LEVELS) * (1 + 4)  # two heads, differences, and every condition
    first = next(row.split(" | ") for row in rows if "0.01 | 1" in row)
    own, unrouted = float(first[3]), float(first[4])
    runs = {path.parent.name: path for path in (tmp_path / "runs").glob("*/*_seed0")}
    again = {name: study.measure(study.read(run), 0.01) for name, run in runs.items()}
    assert own == pytest.approx(again["steering_family_routed"], abs=5e-4)
    assert unrouted == pytest.approx(own - again["steering_family_unrouted"], abs=1e-3)
    study.main([*given, "--results", str(numbers)])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("| family |")] == rows
    assert len(list((tmp_path / "runs").glob("*/*_seed0"))) == 3
    study.main([*given, "--results", str(numbers), "--table"])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("| family |")] == rows
