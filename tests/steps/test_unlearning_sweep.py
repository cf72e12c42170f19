"""The script `unlearning_sweep.py`: balanced trials, the rule of the choice, and a small sweep that is continued."""

import math
import shutil
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from scripted import script
from small_language import SMALL

from gradroute.errors import UserError
from gradroute.records.run_reader import read_manifest

TINY = [o for o in SMALL if not o.startswith(("trainer=", "relearn", "completions", "model.expand", "model.added",
                                              "dataset.stories", "dataset.test_stories"))]  # fmt: skip


@pytest.fixture(scope="module")
def sweep() -> ModuleType:
    return script("unlearning_sweep")


@pytest.mark.parametrize("count", [1, 5, 15, 20])
def test_trials_differ_and_try_every_value_about_equally_often(sweep: ModuleType, count: int) -> None:
    for space in sweep.SPACES.values():
        found = sweep.settings(space, count)
        assert len({repr(setting) for setting in found}) == len(found) == count
        assert found == sweep.settings(space, count) and found[:1] == sweep.settings(space, 1)
        for key, values in space.items():
            often = Counter(repr(setting[key]) for setting in found)
            assert set(often) <= {repr(value) for value in values}
            assert max(often.values()) <= math.ceil(count / len(values)) + 1


def test_the_choice_is_the_highest_forget_loss_that_costs_little(sweep: ModuleType) -> None:
    def trial(rise: float, relearned: float) -> object:
        return sweep.Trial("rmu", {}, rise, 9.0, relearned)

    cheap, good, dear, failed = trial(0.0, 2.0), trial(0.05, 3.0), trial(0.051, 4.0), sweep.Trial("rmu", {})
    assert sweep.choice([cheap, good, dear, failed]) is good
    assert sweep.choice([failed, trial(0.3, 5.0), dear]) is dear  # none is cheap enough: the cheapest
    with pytest.raises(UserError, match="rmu: every trial failed"):
        sweep.choice([failed])


@pytest.mark.slow
def test_a_sweep_trains_once_for_each_seed_and_is_continued(
    sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["dataset.stories=400", "relearn.every=2", "dataset.test_stories=60", "dataset.validation_stories=20"]
    given = [
        "--trials",
        "2",
        "--seeds",
        "1",
        "--preset",
        "smoke",
        "--jobs",
        "1",
        "--only",
        "max_entropy",
        *TINY,
        *sizes,
    ]
    sweep.main(given)
    table = capsys.readouterr().out
    runs = {
        path.parent: read_manifest(path.parent) for path in tmp_path.glob("outputs/unlearning_sweep/*/*/manifest.json")
    }
    assert Counter(manifest["experiment"] for manifest in runs.values()) == {
        "stories_base": 2,
        "stories_max_entropy": 3,
    }
    trained = [manifest.get("trained_in", "").split("/")[0] for manifest in runs.values()]
    assert Counter(trained) == {"": 2, "stories_base": 3}
    kept = Counter(manifest["seed"] for manifest in runs.values() if "model.safetensors" in manifest["files"])
    assert kept == {0: 1, 1: 2}  # both bases, and what is reported
    assert "| base |  | 1 |" in table and table.count("| yes |") == 1
    sweep.main(given)
    again = capsys.readouterr().out
    assert again.count("already finished") == 5 and again.endswith(table[table.index("\n| method") :])
    numbers = tmp_path / "numbers.csv"
    sweep.main([*given, "--results", str(numbers)])
    shutil.rmtree(tmp_path / "outputs")
    capsys.readouterr()
    sweep.main([*given, "--results", str(numbers), "--table"])
    assert capsys.readouterr().out == table[table.index("\n| method") :]
    assert not (tmp_path / "outputs").exists() and len(numbers.read_text().splitlines()) == 6
