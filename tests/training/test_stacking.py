"""Stacked runs against single ones: the same losses and parameters, step by step, and ordinary run folders."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gradroute.config.compose import configuration
from gradroute.config.identity import one_by_seed
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records.metrics import final_rows
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_ledger, read_metrics
from gradroute.running.run import Run
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.training.compiling import compiled_update
from gradroute.training.fit import Fit
from gradroute.training.stacking import together

SMALL = [
    "trainer=smoke", "trainer.train_limit=300", "trainer.test_limit=64", "trainer.batch_size=64", "trainer.epochs=2",
    "steps=[train,certify,ablate,evaluate]", "model.hidden=[24]", "ledger.window=5", "ledger.every=3",
]  # fmt: skip
NUMBERS = [  # what stacked runs may differ in
    ["seed=1"],
    ["seed=2", "trainer.lr=0.004", "trainer.weight_decay=0.01"],
    ["routing.routes.digits_0_4.bottom=-0.5", "losses.l1.top=0"],
    ["experiment=mnist_table2/row7", "losses.groups.digits_5_9=0.5"],
    ["routing=none", "losses.correlation=0.3"],
]


def config(*overrides: str) -> Config:
    return configuration([*SMALL, *overrides])


def trained(configs: list[Config], folder: Path) -> list[list[dict[str, torch.Tensor]]]:
    """Parameters after every update of runs trained together, by run."""
    for own in configs:
        own.output_dir = str(folder)
    runs = [Run(own, quiet=True) for own in configs]
    trainings = [next(iter(run.steps["train"].run(run))) for run in runs]
    fit = Fit(trainings, "float32", torch.device("cpu"))
    seen: list[list[dict[str, torch.Tensor]]] = [[] for _ in runs]

    def note() -> None:
        for training, own in zip(trainings, seen, strict=True):
            own.append({name: p.detach().clone() for name, p in training.objective.named_parameters()})

    fit.run(note)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("common", [[], ["model.decoders=2"], ["routing.labelled_fraction=0.5"]], ids=str)
def test_a_replica_is_the_single_run_at_every_update(tmp_path: Path, common: list[str]) -> None:
    configs = [config(*common, *own) for own in NUMBERS[: 5 if not common else 3]]
    assert [len(stack) for stack in together([*configs], "cuda")] == [len(configs)]
    stacked = trained(configs, tmp_path / "stacked")
    for number, own in enumerate(NUMBERS[: len(configs)]):
        (single,) = trained([config(*common, *own)], tmp_path / f"single{number}")
        for step, (a, b) in enumerate(zip(stacked[number], single, strict=True)):
            for name in b:
                # Adam divides by the root of the gradient's square: rounding of tiny gradients grows to the step size
                difference = (a[name] - b[name]).norm() / b[name].norm().clamp(min=1e-3)
                assert difference < 2e-3, (number, step, name)


@pytest.mark.slow
@pytest.mark.parametrize("rates", [["trainer.lr=0.001"] * 2, ["trainer.lr=0.001", "trainer.lr=0.002"]], ids=str)
def test_compiled_updates_of_a_stack_are_the_plain_ones(
    rates: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`trainer.compile=auto` compiles them on a GPU; here they are made to be."""
    configs = [config(f"seed={seed}", rate, "trainer.compile=auto") for seed, rate in enumerate(rates)]
    assert [len(stack) for stack in together([*configs], "cuda")] == [2]
    plain = trained(configs, tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(Fit, "_compiled", lambda self: compiled_update(self.program, False, print))
    for one, other in zip(trained(configs, tmp_path / "compiled"), plain, strict=True):
        assert len(one) == len(other) > 5
        for name in one[-1]:
            assert (one[-1][name] - other[-1][name]).norm() < 2e-3 * other[-1][name].norm().clamp(min=1e-3), name


@pytest.mark.slow
def test_stacked_runs_leave_the_folders_of_single_ones(tmp_path: Path) -> None:
    together_, alone = (config("seeds=3", f"stack={n}", f"output_dir={tmp_path / n}") for n in ("3", "1"))
    stacked, single = execute(one_by_seed(together_)), execute(one_by_seed(alone))
    for ours, theirs in zip(stacked, single, strict=True):
        assert isinstance(ours, Path) and isinstance(theirs, Path)
        assert (read_manifest(ours)["stacked"], read_manifest(theirs)["stacked"]) == (3, 1)
        assert ours.name.split("_")[2:] == theirs.name.split("_")[2:]
        assert {p.name for p in ours.iterdir()} == {p.name for p in theirs.iterdir()}
        claims = list(claims_of(ours, replay="all"))
        assert all(claim.holds for claim in claims), [claim for claim in claims if not claim.holds]
        tables = [final_rows(read_metrics(run)) for run in (ours, theirs)]
        for a, b in zip(*tables, strict=True):
            assert {k: v for k, v in a.items() if k != "value"} == {k: v for k, v in b.items() if k != "value"}
            assert a["value"] == pytest.approx(b["value"], rel=2e-2, abs=2e-3), a
        for a, b in zip(read_ledger(ours), read_ledger(theirs), strict=True):
            assert [a[k] for k in ("from_step", "group", "region", "points", "weight_min", "measured")] == [
                b[k] for k in ("from_step", "group", "region", "points", "weight_min", "measured")
            ]
            assert (a["routed"] == 0) == (b["routed"] == 0) and (a["unrouted"] == 0) == (b["unrouted"] == 0)
            assert a["routed"] == pytest.approx(b["routed"], rel=0.02) if a["routed"] is not None else True


def test_a_replica_that_diverges_leaves_the_others_alone(tmp_path: Path) -> None:
    good, bad = config("seed=1"), config("seed=2")
    bad.trainer.lr = 1e30  # no configuration may
    for own in (good, bad):
        own.output_dir, own.stack = str(tmp_path), 2
    made, fault = execute([good, bad])
    assert isinstance(made, Path) and read_manifest(made)["state"] == "finished"
    assert isinstance(fault, FloatingPointError) and "update 1, epoch 1" in str(fault)
    states = [read_manifest(path.parent)["state"] for path in tmp_path.glob("*/*/manifest.json")]
    assert sorted(state.split(" ")[0] for state in states) == ["failed", "finished"]


def test_what_cannot_be_stacked_is_trained_alone_or_refused() -> None:
    by_group = [config(f"seed={i}", "trainer.batches=by_group") for i in (1, 2)]
    assert [len(s) for s in together(by_group, "cuda")] == [1, 1]
    by_group[0].stack = 2
    with pytest.raises(UserError, match=r"stack=2: cannot be used with trainer.batches=by_group"):
        together(by_group, "cuda")
    shapes = [config(), config("model.encoding=16", "routing.regions.bottom.units=8:16"), config("seed=5")]
    assert [[c.seed for c in s] for s in together(shapes, "cuda")] == [[0, 5], [0]]
    squared = "losses.error={_target_: gradroute.training.measures.SquaredError}"
    errors = [config(), config(squared), config("seed=5"), config(squared, "seed=6")]
    assert [[c.seed for c in s] for s in together(errors, "cuda")] == [[0, 5], [0, 6]]
    for own, sizes in ((shapes[:1] * 3, [2, 1]), (shapes[:1], [1])):
        for each in own:
            each.stack = 2
        assert [len(s) for s in together(own, "cpu")] == sizes


@pytest.mark.slow
def test_the_command_line_takes_seeds(forked: Any, tmp_path: Path) -> None:
    result = forked("gradroute-run", "seeds=2", "stack=2", *SMALL, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    runs = list(tmp_path.glob("outputs/mnist_split/*_seed[01]"))
    assert len(runs) == 2 and "half_width" in result.stdout
    assert all(len(list(csv.reader((run / "metrics.csv").open()))) > 50 for run in runs)
    result = forked("gradroute-run", "-m", "seeds=2", "stack=4", "losses.correlation=0.1,0.2", *SMALL, cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.count("already finished") == 2, result.stderr
    stacked = [read_manifest(p.parent)["stacked"] for p in tmp_path.glob("outputs/mnist_split/*/manifest.json")]
    assert sorted(stacked) == [2, 2, 2, 2]
    for bad in ("seeds=0", "stack=many", "stack=0"):
        result = forked("gradroute-run", bad, cwd=tmp_path)
        assert result.returncode == 2 and bad.split("=")[0] in result.stderr
