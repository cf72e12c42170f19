"""Searches, as the command makes them: what they leave, go on from, and refuse."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import Killed, at_checkpoint, die
from robust import reseal

from gradroute.commands.search import main
from gradroute.config.compose import configuration
from gradroute.config.overrides import merged
from gradroute.records import run_reader
from gradroute.records.metrics import final_rows
from gradroute.records.tables import read_metrics
from gradroute.running.run import Pruned
from gradroute.running.runner import execute
from gradroute.search.found import unrouted
from gradroute.search.guess import guess

SIZES = ["trainer=smoke", "trainer.train_limit=256", "trainer.test_limit=64", "trainer.batch_size=64",
         "model.hidden=[32]", "trainer.device=cpu"]  # fmt: skip
FILE = """
name: tiny
overrides: ['steps=[train,evaluate]', 'split.groups=[[0,1,2,3,4],[5,6,7,8,9]]', trainer.epochs=3]
space:
  split.units: {parts: 2, of: 32, least: 2}
  split.outside: {low: -1.0, high: 0.5}
  split.l1: {low: 0.0001, high: 0.1, log: true}
objectives:
  certified: {metric: mse, head: certificate, region: for_digits_0_4, group: digits_5_9, goal: higher}
  reconstruction: {metric: mse, head: decoder, group: mean, goal: lower}
trials: 4
random: 1
pruning: {after: 3}
final: {best: 1, seeds: 2, overrides: ['steps=[train,evaluate]', 'split.groups=[[0,1,2,3,4],[5,6,7,8,9]]']}
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A folder of configurations with the search `tiny`."""
    (tmp_path / "conf" / "search").mkdir(parents=True)
    (tmp_path / "conf" / "search" / "tiny.yaml").write_text(FILE)
    return tmp_path / "conf"


def arguments(conf: Path, *more: str) -> list[str]:
    return ["--config-dir", str(conf), "search=tiny", *SIZES, *more]


ALONE = ["search.final.best=0", "checkpoint.minutes=0", "search.pruning.after=2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data_cache: Path) -> list[dict[str, str]]:
    """The trials of a search that nothing stopped."""
    cwd = tmp_path_factory.mktemp("whole")
    (cwd / "conf" / "search").mkdir(parents=True)
    (cwd / "conf" / "search" / "tiny.yaml").write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADROUTE_DATA", str(data_cache))
        patch.chdir(cwd)
        assert status(patch, *arguments(cwd / "conf", *ALONE)) == 0
    return trials(cwd)


def trials(cwd: Path) -> list[dict[str, str]]:
    with (cwd / "outputs" / "searches" / "tiny" / "trials.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "trial")} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.rendered
def test_a_search_ends_with_its_front_made_again_and_leaves_ordinary_runs(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status(monkeypatch, *arguments(conf, "search.workers=2")) == 0
    assert "minus the hand-made mask, on fresh seeds" in capfd.readouterr().out
    folder = tmp_path / "outputs" / "searches" / "tiny"
    found = trials(tmp_path)
    assert len(found) == 1 + 4 + 1  # the hand-made mask, the search, random search
    assert found[0]["overrides"] == "as the experiment has it"
    assert {row["state"] for row in found} <= {"complete", "pruned"}
    runs = {path.parent: json.loads(path.read_text()) for path in (folder / "trials").rglob("manifest.json")}
    assert len(runs) == 6
    states = [str(manifest["state"]).split()[0] for manifest in runs.values()]
    assert states.count("finished") == [row["state"] for row in found].count("complete")
    finals = list((folder / "finals").rglob("manifest.json"))
    assert {json.loads(path.read_text())["seed"] for path in finals} == {100, 101}
    with (folder / "finals.csv").open() as file:
        rows = [(row["finalist"], row["seed"], float(row["reconstruction"])) for row in csv.DictReader(file)]
    assert [row[:2] for row in rows[:2]] == [("handmade", "100"), ("handmade", "101")]
    errors = []
    for path in finals:
        measured = [r for r in final_rows(read_metrics(path.parent)) if (r["head"], r["metric"]) == ("decoder", "mse")]
        errors.append([r["value"] for r in measured if r["group"] in ("digits_0_4", "digits_5_9")])
    assert sorted({row[2] for row in rows}) == pytest.approx(sorted({sum(two) / 2 for two in errors}), rel=1e-5)
    page = (folder / "search.html").read_text()
    assert "Commands of the best configurations" in page and "gradroute-run" in page
    assert status(monkeypatch, *arguments(conf)) == 0
    assert trials(tmp_path) == found
    assert len(list(folder.rglob("manifest.json"))) == 6 + len(finals)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [20, 45])
def test_a_search_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    whole: list[dict[str, str]], conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_checkpoint(patch, checkpoint, die)  # of a trial in the middle of the search
        status(patch, *arguments(conf, *ALONE))
    done = tmp_path / "outputs" / "searches" / "tiny" / "trials"
    before = {path: path.read_bytes() for path in done.rglob("summary.json")}
    assert 1 <= len(before) <= 4
    assert status(monkeypatch, *arguments(conf, *ALONE)) == 0
    assert trials(tmp_path) == whole
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(done.rglob("manifest.json"))) == 6  # the killed run was gone on with


@pytest.mark.slow
def test_a_search_that_names_no_objectives_has_those_of_its_experiment(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, end = FILE.index("objectives:"), FILE.index("trials:")
    (conf / "search" / "tiny.yaml").write_text(FILE[:start] + FILE[end:])
    monkeypatch.chdir(tmp_path)
    few = ["search.trials=1", "search.random=0", "search.final.best=0"]
    assert status(monkeypatch, *arguments(conf, *few)) == 0
    assert all(0 <= float(row["localization"]) <= 1 and float(row["reconstruction"]) > 0 for row in trials(tmp_path))
    assert len(trials(tmp_path)) == 2


def test_a_pruned_run_says_so_and_is_not_gone_on_with(tmp_path: Path) -> None:
    config = configuration([*SIZES, "trainer.epochs=3", f"output_dir={tmp_path}", "checkpoint.minutes=0"])

    def watch(step: int, rows: list[dict[str, Any]]) -> None:
        assert step == 4 and {row["group"] for row in rows} == {"digits_0_4", "digits_5_9", "all"}
        raise Pruned("hopeless")

    (outcome,) = execute([config], reuse=True, watch=watch)
    assert isinstance(outcome, Pruned)
    (run,) = (tmp_path / "mnist_split").iterdir()
    assert run_reader.read_manifest(run)["state"] == "pruned (hopeless)"
    assert not (run / "checkpoints").exists() and run_reader.twin(config) is None


@pytest.mark.parametrize(
    ("given", "first"), [([], "top"), (["split.groups=[[0,1,2,3,4],[5,6,7,8,9]]"], "for_digits_0_4")]
)
def test_the_guess_gives_each_unit_to_the_group_that_uses_more_of_itself_there(
    given: list[str], first: str, tmp_path: Path
) -> None:
    own = [*SIZES, *given, f"output_dir={tmp_path}", "steps=[train,evaluate]"]
    config = configuration(own)
    (run,) = execute([unrouted(config)], watch=lambda step, rows: None)
    assert isinstance(run, Path)
    guessed, placebos = guess(config, run, "activation", 2, seed=0)
    found = {one.partition("=")[0]: json.loads(one.partition("=")[2]) for one in guessed}
    assert sorted(unit for part in found.values() for unit in part) == list(range(32))
    regions = {f"routing.regions.{name}.units": one.units for name, one in config.routing.regions.items()}
    assert found.keys() == regions.keys() and first in config.routing.regions
    made = configuration([*own, *guessed]).routing.regions
    assert {f"routing.regions.{name}.units": one.units for name, one in made.items()} == found
    for placebo in placebos:
        assert placebo != guessed
        assert [one.count(",") for one in placebo] == [one.count(",") for one in guessed]

    from gradroute import load
    from gradroute.tasks.base import create

    task, model = create(unrouted(config)), load(run).model
    encoder = model.get_submodule("encoder")
    shares = []
    for group in (0, 1):  # the slow, obvious way: point by point
        rows = torch.nonzero(task.routed == group).flatten()
        activity = torch.stack([encoder(task.batch(row[None])[0])[0].abs() for row in rows]).mean(0).detach()
        shares.append(activity / activity.sum())
    assert found[f"routing.regions.{first}.units"] == torch.nonzero(shares[0] >= shares[1]).flatten().tolist()
    assert guess(config, run, "gradient", 0, seed=0)[0] != guessed


@pytest.mark.slow
def test_finals_with_the_numbers_of_another_seed_count_once(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here the seed changes nothing, by a stand-in: the runs of three seeds are those of one, but for their number."""
    monkeypatch.chdir(tmp_path)
    few = ["search.trials=1", "search.random=0", "search.final.seeds=3"]
    assert status(monkeypatch, *arguments(conf, *few)) == 0
    folder = tmp_path / "outputs" / "searches" / "tiny"
    runs = sorted((folder / "finals").glob("*/*_seed10?"))
    assert len(runs) == 6
    by_setting: dict[str, Path] = {}
    for run in runs:
        first = by_setting.setdefault(run.name.split("_")[-2], run)
        if not run.name.endswith("seed102"):
            (run / "summary.json").write_bytes((first / "summary.json").read_bytes())
            reseal(run)
    capfd.readouterr()
    assert status(monkeypatch, *arguments(conf, *few)) == 0
    said = capfd.readouterr().out
    assert said.count("not counted, since their numbers are those of another seed to the bit: ") == 2
    with (folder / "finals.csv").open() as file:
        rows = [(row["finalist"], row["seed"]) for row in csv.DictReader(file)]
    assert [seed for _, seed in rows] == ["100", "102"] * 2 and len({name for name, _ in rows}) == 2


def test_a_later_override_of_the_same_key_counts() -> None:
    assert merged(["a=1", "b=2"], ["+a=3"], ["c=4"]) == ["b=2", "+a=3", "c=4"]


FAULTS = [
    (["search=tiny", "search.space.lr.low=1", "search.space.lr.high=2"], "unknown key 'lr'"),
    (["search=tiny", "search.space.x.low=2", "search.space.x.high=1"], "the range from low=2 to high=1 is empty"),
    (["search=tiny", "search.objectives.certified.metric=mze"], "did you mean mse"),
    (["search=tiny", "search.objectives.certified.region=left"], "no run writes certificate left digits_5_9 mse"),
    (["search=tini"], "did you mean tiny"),
    ([], "search=NAME is not given"),
    (["search=tiny", "trainer.lr=fast"], "trainer.lr"),
    (["search=tiny", "-m"], "give key=value"),
    (["search=tiny", "search.trials=none"], "search.trials"),
]


@pytest.mark.parametrize(("given", "says"), FAULTS, ids=[" ".join(given) for given, _ in FAULTS])
def test_a_mistake_is_one_line_and_status_2(
    given: list[str], says: str, conf: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert status(monkeypatch, "--config-dir", str(conf), *SIZES, *given) == 2
    said = capsys.readouterr().err.strip()
    assert says in said and len(said.splitlines()) == 1


def status(monkeypatch: pytest.MonkeyPatch, *given: str) -> object:
    monkeypatch.setattr(sys, "argv", ["gradroute-search", *given])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.slow
def test_a_folder_of_another_search_or_a_damaged_one_is_refused(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = arguments(conf, "search.trials=1", "search.random=0", "search.final.best=0")
    assert status(monkeypatch, *few) == 0
    assert status(monkeypatch, *few, "trainer.lr=0.01") == 2
    assert "has a search of another override; set another search.name=" in capsys.readouterr().err
    assert status(monkeypatch, *few, "search.seed=1") == 2
    assert "has a search of another seed" in capsys.readouterr().err
    (tmp_path / "outputs" / "searches" / "tiny" / "study.journal").write_text("{no json\n{}\n")
    assert status(monkeypatch, *few) == 2
    assert "damaged" in capsys.readouterr().err


def test_without_optuna_it_says_what_to_install(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "gradroute.search.study", raising=False)
    assert status(monkeypatch, *arguments(conf)) == 2
    assert "pip install 'gradroute[search]'" in capsys.readouterr().err
