"""A user's own data set, model, step, measure, ablation and plot, all in `tests/lab`, through every command."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import Command
from forked import Forked

LAB = Path(__file__).parents[1] / "lab"
CONF = str(LAB / "conf")
RUN = ("--config-dir", CONF, "experiment=shapes", "trainer=smoke")
FILES = ("metrics.csv", "ledger.csv", "model.safetensors", "summary.json", "samples.npz")


@pytest.fixture(scope="module")
def made(forked: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the lab, in a folder where nothing else is."""
    cwd = tmp_path_factory.mktemp("lab")
    result = forked("gradroute-run", *RUN, cwd=cwd, rendered=True)
    assert result.returncode == 0, result.stderr
    (run,) = (cwd / "outputs" / "shapes").iterdir()
    return run


def test_the_lab_is_small() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in LAB.rglob("*") if path.suffix in (".py", ".yaml"))
    assert lines <= 150


def test_the_run_has_what_each_component_adds(made: Path) -> None:
    metrics = pd.read_csv(made / "metrics.csv")
    final = metrics[(metrics["split"] == "test") & (metrics["step"] == metrics["step"].max())]
    worst = final[final["metric"] == "worst_pixel"]
    assert set(worst["head"]) == {"decoder", "certificate", "decoder_ablated"}
    assert set(worst["group"]) >= {"red", "blue"}
    assert set(worst["unit"]) == {"pixel, pixels in [-1, 1]"} and bool((worst["value"] <= 2.5).all())
    assert final[final["metric"] == "code_distance"]["value"].item() > 0
    whole, ablated = (final[(final["head"] == head) & (final["metric"] == "mse")]["value"].mean()
                      for head in ("decoder", "decoder_ablated"))  # fmt: skip
    assert whole != ablated
    assert (made / "plots" / "error_histogram.png").is_file() and (made / "plots" / "error_histogram.svg").is_file()
    page = (made / "report.html").read_text()
    assert "Distribution of the errors of the decoder on the shown images" in page and "worst_pixel" in page


@pytest.mark.slow
def test_other_commands_refuse_its_code_until_they_are_told(made: Path, forked: Command, tmp_path: Path) -> None:
    cwd = made.parents[2]
    refused = forked("gradroute-verify", str(made), cwd=cwd)
    assert refused.returncode == 2 and "shapes.Shapes" in refused.stderr and "--run-code" in refused.stderr
    verified = forked("gradroute-verify", "--run-code", "--config-dir", CONF, str(made), cwd=cwd)
    assert verified.returncode == 0, verified.stdout
    again = forked("gradroute-run", f"rerun={made}", "output_dir=again", cwd=cwd)
    assert again.returncode == 2 and "run_code=true" in again.stderr
    again = forked("gradroute-run", f"rerun={made}", "output_dir=again", "run_code=true", "--config-dir", CONF, cwd=cwd)
    assert again.returncode == 0, again.stderr
    (other,) = (cwd / "again" / "shapes").iterdir()
    for name in FILES:
        assert (other / name).read_bytes() == (made / name).read_bytes(), name


@pytest.mark.slow
def test_it_is_loaded_where_the_caller_trusts_it(made: Path) -> None:
    code = f"""
import sys; sys.path.append({str(LAB)!r})
import gradroute, torch
try:
    gradroute.load({str(made)!r})
except gradroute.UserError as error:
    assert "run_code=True" in str(error), error
else:
    raise AssertionError("it was not refused")
run = gradroute.open_run({str(made)!r}, run_code=True)
assert run.model(torch.zeros(2, 3, 64, 48)).shape == (2, 3, 64, 48) and set(run.certificates) == {{"top", "bottom"}}
"""
    subprocess.run([sys.executable, "-c", code], cwd=made.parents[2], check=True, timeout=120)


@pytest.mark.slow
def test_it_is_swept_compared_and_gone_on_with(forked: Command, tmp_path: Path) -> None:
    sweep = ("-m", *RUN, "seed=0,1", "losses.correlation=0,0.01", "steps=[train,evaluate]")
    result = forked("gradroute-run", *sweep, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "outputs" / "shapes").iterdir())) == 4
    result = forked("gradroute-run", *sweep, cwd=tmp_path)
    assert result.stdout.count("already finished") == 4
    wanted = ("--where", "losses.correlation=0.01", "--metric", "worst_pixel", "--format", "csv")
    compared = forked("gradroute-compare", "outputs/shapes", *wanted, cwd=tmp_path)
    assert compared.returncode == 0 and "shapes" in compared.stdout, compared.stderr
    assert set(pd.read_csv(io.StringIO(compared.stdout))["n"]) == {2}


@pytest.mark.slow
def test_it_is_searched(forked: Command, tmp_path: Path) -> None:
    sizes = ("search.trials=2", "search.final.best=0", "trainer=smoke", "search.random=0", "search.guess=null")
    own = "search.objectives={worst: {metric: worst_pixel}, apart: {metric: code_distance, head: code, group: all}}"
    given = ("--config-dir", CONF, "search=shapes", own, *sizes, "search.overrides=[experiment=shapes]")
    result = forked("gradroute-search", *given, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "outputs" / "searches" / "shapes"
    assert "worst_pixel, pixel, pixels in [-1, 1]" in (folder / "search.html").read_text()
    trials = pd.read_csv(folder / "trials.csv")
    assert len(trials) == 3 and bool((trials[["worst", "apart"]] > 0).all(axis=None))
    result = forked("gradroute-search", *given, "search.objectives.worst.metric=worst_pixels", cwd=tmp_path)
    assert result.returncode == 2 and "did you mean worst_pixel" in result.stderr


def test_a_stack_of_it_is_refused_clearly(forked: Command, tmp_path: Path) -> None:
    result = forked("gradroute-run", *RUN, "seeds=2", "stack=2", cwd=tmp_path)
    assert result.returncode == 2
    assert "shapes.ConvAutoencoder: it is trained alone; set stack=1 or auto" in result.stderr


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_bit(forked: Command, tmp_path: Path) -> None:
    sizes = ("trainer.epochs=4", "checkpoint.minutes=0", "steps=[train,evaluate]")
    whole = forked("gradroute-run", *RUN, *sizes, "output_dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    begun = Forked("gradroute-run", *RUN, *sizes, "output_dir=cut", cwd=tmp_path, environment=os.environ)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cut/shapes/*/checkpoints/000003")) and time.monotonic() < deadline:
        time.sleep(0.02)
    begun.process.kill()
    assert begun.wait(60).returncode == -signal.SIGKILL
    (cut,) = (tmp_path / "cut" / "shapes").iterdir()
    assert json.loads((cut / "manifest.json").read_text())["state"] == "running"
    refused = forked("gradroute-run", f"resume={cut}", cwd=tmp_path)
    assert refused.returncode == 2 and "run_code=true" in refused.stderr
    done = forked("gradroute-run", f"resume={cut}", "run_code=true", "--config-dir", CONF, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (reference,) = (tmp_path / "whole" / "shapes").iterdir()
    for name in FILES:
        assert (cut / name).read_bytes() == (reference / name).read_bytes(), name
