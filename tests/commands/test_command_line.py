"""The real command line: a golden smoke run, what it leaves, and how mistakes end."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gradroute
from gradroute.commands.help import first_comment
from gradroute.commands.run import main
from gradroute.config.compose import conf_dir
from gradroute.config.targets import build
from gradroute.errors import UserError
from gradroute.records.metrics import COLUMNS, final_rows
from gradroute.records.tables import read_metrics

Command = Callable[..., "subprocess.CompletedProcess[str]"]
PLOTS = ("encoding_encoder", "ledger", "loss_per_label", "mask", "reconstructions", "training_curves")
# mean squared error of the smoke run, float32, as first measured; tolerance for other processors
GOLDEN = {
    ("decoder", "all", "digits_0_4"): 0.304,
    ("decoder", "all", "digits_5_9"): 0.301,
    ("certificate", "top", "digits_0_4"): 0.291,
    ("certificate", "bottom", "digits_5_9"): 0.267,
    ("decoder_ablated", "top", "digits_0_4"): 0.308,
    ("decoder_ablated", "bottom", "digits_5_9"): 0.334,
}


def test_the_smoke_run_gives_the_golden_values(smoke: Path) -> None:
    values = {
        (r["head"], r["region"], r["group"]): r["value"]
        for r in final_rows(read_metrics(smoke))
        if r["metric"] == "mse"
    }
    # The order of summation, and so the number of threads and the processor, moves these by up to 0.006.
    assert {key: values[key] for key in GOLDEN} == pytest.approx(GOLDEN, abs=1e-2)


def test_the_run_folder_is_complete_and_its_checksums_hold(smoke: Path) -> None:
    manifest = json.loads((smoke / "manifest.json").read_text())
    expected = {
        "config.yaml",
        "metrics.csv",
        "summary.json",
        "model.safetensors",
        "samples.npz",
        "figures.json",
        "log.txt",
        "ledger.csv",
        "report.html",
    }
    expected |= {f"plots/{name}.{kind}" for name in PLOTS for kind in ("png", "svg")}
    assert manifest["state"] == "finished" and set(manifest["files"]) == expected
    for name, sha256 in manifest["files"].items():
        assert hashlib.sha256((smoke / name).read_bytes()).hexdigest() == sha256
    for key in ("packages", "dataset_sha256", "hardware", "command", "seed", "wall_seconds", "train_seconds"):
        assert manifest[key] not in (None, {}), key
    assert smoke.name.endswith(f"_{manifest['config_hash']}_seed0")


def test_metrics_are_tidy_and_cover_every_head_group_digit_and_metric(smoke: Path) -> None:
    rows = read_metrics(smoke)
    assert tuple(rows[0]) == COLUMNS
    heads = {("decoder", "all")} | {(h, r) for h in ("certificate", "decoder_ablated") for r in ("top", "bottom")}
    groups = {"digits_0_4", "digits_5_9"} | {f"digit_{d}" for d in range(10)}
    found = [(r["head"], r["region"], r["group"], r["metric"]) for r in final_rows(rows)]
    errors = [(*h, g, m) for h in heads for g in groups for m in ("mse", "mae")]
    norms = [
        ("monitor", r, g, f"{n}_norm")
        for r in ("top", "bottom")
        for g in groups
        if "_" in g[6:]
        for n in ("activation", "gradient")
    ]
    scores = [("score", "all", g, "localization") for g in ("digits_0_4", "digits_5_9", "all")]
    assert sorted(found) == sorted(errors + norms + scores)
    assert {r["metric"] for r in rows if r["split"] == "train"} == {"mae", "l1", "correlation"}


def test_load_gives_back_the_model_that_was_measured(smoke: Path) -> None:
    run = gradroute.load(smoke)
    data = build(run.config.dataset, "dataset").tensors(test_limit=run.config.trainer.test_limit)
    with torch.no_grad():
        error = (run.model(data.test_images) - data.test_images).square().mean(1)
    low = float(error[data.test_labels < 5].mean())
    rows = final_rows(read_metrics(smoke))
    recorded = [r["value"] for r in rows if (r["head"], r["group"], r["metric"]) == ("decoder", "digits_0_4", "mse")]
    assert recorded == [pytest.approx(low, abs=1e-5)] and set(run.certificates) == {"top", "bottom"}


def test_load_refuses_a_damaged_or_foreign_folder(smoke: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        gradroute.load(tmp_path)
    shutil.copytree(smoke, tmp_path / "run")
    weights = bytearray((tmp_path / "run" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "run" / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        gradroute.load(tmp_path / "run")


def test_rerun_repeats_a_run_to_the_bit(small: Path, forked: Command, tmp_path: Path) -> None:
    result = forked("gradroute-run", f"rerun={small}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (again,) = (tmp_path / "outputs" / "mnist_split").iterdir()
    assert (again / "metrics.csv").read_bytes() == (small / "metrics.csv").read_bytes()
    result = forked("gradroute-run", f"rerun={small}", "sede=1", cwd=tmp_path)
    assert result.returncode == 2 and "unknown key 'sede'; did you mean seed" in result.stderr


@pytest.mark.slow
def test_compare_shows_runs_and_leaves_torch_alone(
    smoke: Path, command: Command, forked: Command, tmp_path: Path
) -> None:
    result = command("gradroute-compare", str(smoke), "--metric", "mae", cwd=tmp_path)
    assert result.returncode == 0 and "certificate" in result.stdout and "published" in result.stdout
    code = "import sys; from gradroute.comparison.compare import compare"
    code += f"; compare([{str(smoke)!r}], 'mse'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    for bad, message in ((tmp_path, "not a run folder"), (tmp_path / "none", "not a run folder")):
        result = forked("gradroute-compare", str(bad), cwd=tmp_path)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_help_and_mistakes_do_not_import_torch() -> None:
    for arguments in (["--help"], ["trainer.epochs=0"]):
        code = f"import sys; sys.argv = ['gradroute-run', *{arguments}]; from gradroute.commands import run\n"
        code += "try: run.main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_help_says_how_long_each_experiment_takes() -> None:
    folder = conf_dir() / "experiment"  # without the one that is for a GPU
    paths = [path for path in folder.rglob("*.yaml") if path.name[0] != "_" and path.stem != "cifar100_split"]
    assert len(paths) > 50
    untimed = [path.name for path in paths if not re.search(r" \d+ (minutes?|seconds)\.$", first_comment(path))]
    assert not untimed


MISTAKES = [
    (["sede=1"], "unknown key 'sede'; did you mean seed"),
    (["+sede=1"], "unknown key 'sede'; did you mean seed"),
    (["trainer.epoch=1"], "did you mean trainer.epochs"),
    (["experiment=mnist_spilt"], "mnist_split"),
    (["trainer.epochs=many"], "trainer.epochs"),
    (["trainer=[1]"], "trainer=[1]: must be the name of an option, such as fast"),
    (["-m", "trainer=smoke,2"], "trainer=smoke,2: must be the name of an option, such as fast"),
    (["trainer={epocs: 1}"], "unknown key 'trainer.epocs'; did you mean trainer.epochs"),
    (["routing={groups: {new: {lables: [1]}}}"], "unknown key 'routing.groups.new.lables'"),
    (["presets={smoek: {epochs: 1}}"], "unknown key 'presets.smoek'"),
    (["ledger={widow: 1}"], "unknown key 'ledger.widow'; did you mean ledger.window"),
    (["tracker=null"], "tracker=null: must be the name of an option, such as tensorboard"),
    (["routing.regions.top.site=encodr"], "did you mean encoder"),
    (["routing.regions.top.units=0:40"], "unit 39 is out of range"),
    (["routing.regions.top.units=992"], "bare number"),
    (["routing.regions.top.units=4:4"], "the region is empty"),
    (["routing.groups.digits_0_4.labels=[0,1,2]"], "labels [3, 4] are in no group"),
    (["routing.groups.digits_0_4.labels=[0,1,2,3,4,12]"], "unknown label"),
    (["dataset.root=/nonexistent"], "is missing"),
    (["output_dir=/dev/null/x"], "cannot be written"),
    (["trainer.device=cuda:99"], "trainer.device=cuda:99"),
    (["a=b=c=["], "error:"),
    (["rerun=/nonexistent"], "not a run folder"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_a_mistake_is_one_line_and_status_2_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    extra = [] if arguments[0].startswith("rerun=") else ["trainer=smoke"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gradroute-run", *extra, *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    lines = capfd.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and len(lines) == 1 and message in lines[0], lines
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 11], ids=lambda place: MISTAKES[place][0][0])
def test_it_is_also_as_a_process_of_its_own(command: Command, tmp_path: Path, place: int) -> None:
    """Once before torch is imported, and once after."""
    arguments, message = MISTAKES[place]
    result = command("gradroute-run", "trainer=smoke", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and message in result.stderr, result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_termination_is_recorded(command: Command, tmp_path: Path, data_cache: Path) -> None:
    script = Path(sys.executable).parent / "gradroute-run"
    environment = {**os.environ, "GRADROUTE_DATA": str(data_cache)}
    arguments = [str(script), "trainer=smoke", "trainer.epochs=10000"]
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("outputs/*/*/log.txt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    (manifest,) = tmp_path.glob("outputs/*/*/manifest.json")
    assert json.loads(manifest.read_text())["state"] == "interrupted"


@pytest.mark.slow
def test_a_sweep_runs_every_job(forked: Command, tmp_path: Path) -> None:
    small = ["trainer=smoke", "trainer.epochs=1", "trainer.train_limit=256", "trainer.test_limit=64",
             "model.hidden=[32]", "steps=[train,ablate,evaluate]"]  # fmt: skip
    result = forked(
        "gradroute-run", "-m", "seed=0,1", "routing=mnist_halves,none", "ablation=mean", *small, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    runs = sorted(tmp_path.glob("outputs/mnist_split/*/summary.json"))
    assert len(runs) == 4
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    result = forked("gradroute-compare", str(sweep), "--metric", "localization", "--format", "csv", cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.count(",2,") == 6, result.stdout  # two seeds of each
    assert {p.name for p in sweep.iterdir()} >= {f"comparison.{kind}" for kind in ("csv", "md", "tex", "html", "png")}
    result = forked(
        "gradroute-run", "-m", "seed=0,1,-1", "routing=mnist_halves,none", "ablation=mean", *small, cwd=tmp_path
    )
    assert result.stdout.count("already finished") == 4  # continued, not done again
    assert sorted(tmp_path.glob("outputs/mnist_split/*/summary.json")) == runs
    assert result.returncode == 2 and result.stderr.count("seed=-1: must be") == 2
    assert "failed: seed=-1, routing=none" in result.stderr


def test_labels_in_no_group_train_unrouted_when_asked(forked: Command, tmp_path: Path) -> None:
    result = forked(
        "gradroute-run", "trainer=smoke", "trainer.epochs=1", "model.hidden=[32]", "routing.unassigned=unrouted",
        "routing.groups.digits_0_4.labels=[0,1,2]", "routing.regions.top.units=0:24",
        "routing.regions.bottom.units=24:32", "ablation.region=bottom", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "outputs" / "mnist_split").iterdir()
    rows = final_rows(read_metrics(run))
    assert {"unassigned"} <= {r["group"] for r in rows}
    assert {r["region"] for r in rows if r["head"] == "decoder_ablated"} == {"bottom"}
