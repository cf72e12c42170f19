"""Runs that are interrupted, by what happens to a process or its folder, and gone on with."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Result
from interrupted import at_checkpoint, interrupted

from gradroute import load
from gradroute.comparison.runs import read_run
from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records import checkpoints, locks
from gradroute.records.run_reader import read_manifest
from gradroute.records.seal import sealed
from gradroute.running.run import Run
from gradroute.running.runner import Outcome, execute
from gradroute.running.verify import claims_of
from gradroute.tasks.reconstruction import Reconstruction
from gradroute.training import signals
from gradroute.training.fit import Fit
from gradroute.training.measures import AbsoluteError
from gradroute.training.states import read_state
from gradroute.training.training import Rows

SMALL = [
    "trainer=smoke", "trainer.train_limit=300", "trainer.test_limit=64", "trainer.batch_size=64", "trainer.epochs=2",
    "trainer.device=cpu", "steps=[train,certify,ablate,evaluate]", "model.hidden=[24]", "ledger.window=4",
    "ledger.every=3", "checkpoint.minutes=0",
]  # fmt: skip
FILES = ("metrics.csv", "ledger.csv", "model.safetensors", "samples.npz", "summary.json", "figures.json")
KINDS = {
    "plain": [],
    "one_decoder_per_group": ["model.decoders=2", "routing.labelled_fraction=1"],
    "few_labels": ["routing.labelled_fraction=0.3"],
    "scheduled": ["routing.routes.digits_0_4.bottom={weight:0.5,start:3,ramp:4}"],
    "parameters": [
        "+routing.regions.rows={parameters:{encoder.linear0.weight:'0:9'}}", "+routing.routes.digits_0_4.rows=0",
        "trainer.batches=by_group",
    ],
    "resampled": ["ablation=resample"],
    "no_ledger": ["ledger.enabled=false"],
    "bfloat16": ["trainer.precision=bfloat16"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _terminal_not_ignored() -> Iterator[None]:
    """As where the tests themselves were not started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def config(folder: Path, *overrides: str) -> Config:
    return configuration([*SMALL, f"output_dir={folder}", *overrides])


def made(outcome: Outcome) -> Path:
    assert isinstance(outcome, Path), outcome
    return outcome


def assert_same(run: Path, other: Path) -> None:
    for name in FILES:
        if (other / name).exists():
            assert (run / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(
    "kind", [kind if kind == "plain" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_a_run_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    whole = made(execute([config(tmp_path / "whole", *KINDS[kind])])[0])
    updates = 2 * 5  # of each task; one more checkpoint at the end of each step
    everywhere = (3, updates, updates + 1, 2 * updates + 4, 3 * updates + 2)
    for number in everywhere if kind == "plain" else (7, 3 * updates + 2):
        own = config(tmp_path / str(number), *KINDS[kind])
        (run,) = interrupted(monkeypatch, [own], number)
        assert made(execute([own], folder=run)[0]) == run
        assert_same(run, whole)
        manifest = read_manifest(run)
        assert manifest["state"] == "finished" and len(manifest["resumed"]) == 1
        assert not (run / "checkpoints").exists() and not (run / ".lock").exists()
    assert list(claims_of(run)) == list(claims_of(whole))


def test_a_run_that_has_numbers_already_goes_on_to_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers on disk are replaced, and the report reads the new ones."""
    own = config(tmp_path, "steps=[train,evaluate,report]")
    (run,) = interrupted(monkeypatch, [own], 8)
    assert (run / "metrics.csv").exists() and read_manifest(run)["state"].startswith("failed")
    assert execute([own], folder=run) == [run]
    manifest = read_manifest(run)
    assert manifest["state"] == "finished" and {"metrics.csv", "report.html"} <= manifest["files"].keys()


@pytest.mark.slow
def test_a_stack_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def three(folder: Path) -> list[Config]:
        changes = (["seed=1"], ["seed=2", "trainer.lr=0.004"], ["seed=3", "losses.l1.top=0"])
        return [config(folder, "stack=3", *own) for own in changes]

    whole = [made(outcome) for outcome in execute(three(tmp_path / "whole"))]
    runs = interrupted(monkeypatch, three(tmp_path / "cut"), 3 * 4)
    again = [made(outcome) for outcome in execute(three(tmp_path / "cut"), reuse=True)]
    assert sorted(again) == runs
    for one, other in zip(again, whole, strict=True):
        assert_same(one, other)


@pytest.mark.slow
def test_runs_that_are_not_equally_far_do_not_go_on_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def two() -> list[Config]:
        return [config(tmp_path / "cut", "stack=2", f"seed={seed}") for seed in (1, 2)]

    whole = [made(execute([config(tmp_path / "whole", f"seed={seed}")])[0]) for seed in (1, 2)]
    interrupted(monkeypatch, [config(tmp_path / "cut", "seed=1")], 4)
    again = [made(outcome) for outcome in execute(two(), reuse=True)]
    for one, other in zip(again, whole, strict=True):
        assert_same(one, other)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = made(execute([config(tmp_path / "whole")])[0])
    own = config(tmp_path / "cut")
    (run,) = interrupted(monkeypatch, [own], 6)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000005", "000006"]
    weights = run / "checkpoints" / "000006" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"damaged!")
    kept = shutil.copytree(run, tmp_path / "kept")
    assert made(execute([own], folder=run)[0]) == run
    assert_same(run, whole)
    assert read_manifest(run)["resumed"][0]["step"] == 0  # of the first epoch, which was not over

    (kept / "checkpoints" / "000005" / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"000006/weights.safetensors: damaged .*no intact checkpoint"):
        checkpoints.newest(kept)
    shutil.rmtree(run)
    kept.rename(run)
    assert made(execute([own], reuse=True)[0]) == run
    assert "starts again: " in capsys.readouterr().out
    assert_same(run, whole)


def test_a_checkpoint_from_a_stranger_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = config(tmp_path / "cut")
    (run,) = interrupted(monkeypatch, [own], 2)
    checkpoint = checkpoints.newest(run)
    assert checkpoint is not None
    state = run / checkpoint.name / "state.pt"

    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path}/executed",)

    packed = tmp_path / "packed"
    with zipfile.ZipFile(state) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    torch.save({"payload": Payload()}, tmp_path / "payload")
    for content in (pickle.dumps(Payload()), b"", packed.read_bytes(), (tmp_path / "payload").read_bytes()):
        state.write_bytes(content)
        with pytest.raises(UserError, match=r"state\.pt: damaged"):
            read_state(checkpoint)
    torch.save({"done": "x"}, state)
    with pytest.raises(UserError, match="is not a checkpoint of this run"):
        Run(own, folder=run, checkpoint=checkpoint)
    assert not (tmp_path / "executed").exists()
    assert not locks.in_use(run)


def sent_at_update(monkeypatch: pytest.MonkeyPatch, number: int, what: signal.Signals) -> None:
    """Have a signal come to this process while it makes an update, counted from 1."""
    update, count = Fit._update, [0]

    def updated(fit: Fit, chosen: list[Rows]) -> None:
        update(fit, chosen)
        count[0] += 1
        if count[0] == number:
            os.kill(os.getpid(), what)

    monkeypatch.setattr(Fit, "_update", updated)


SIGNALS = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGINT")


@pytest.mark.parametrize("number", [getattr(signal, name) for name in SIGNALS])
def test_a_signal_keeps_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    whole = made(execute([config(tmp_path / "whole")])[0])
    own = config(tmp_path / "cut", "checkpoint.minutes=1000")
    with monkeypatch.context() as patch, pytest.raises(BaseException) as caught:
        sent_at_update(patch, 7, number)
        execute([own])
    if number == signal.SIGINT:
        assert isinstance(caught.value, KeyboardInterrupt)
    else:
        assert isinstance(caught.value, SystemExit) and caught.value.code == 128 + number
    (run,) = (tmp_path / "cut" / "mnist_split").iterdir()
    assert read_manifest(run)["state"] == "interrupted"
    assert made(execute([own], reuse=True)[0]) == run
    assert "7 updates" in (run / "log.txt").read_text()
    assert_same(run, whole)


def test_a_closed_terminal_that_nohup_has_ignored_stays_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sent_at_update(monkeypatch, 7, signal.SIGHUP)
    run = made(execute([config(tmp_path)])[0])
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert read_manifest(run)["state"] == "finished"


def test_signals_have_their_handlers_back() -> None:
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.heard():
        assert all(signal.getsignal(number) not in (signal.SIG_DFL, None) for number in signals.SIGNALS)
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_a_second_interruption_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    default: list[int] = []
    with signals.heard(), pytest.raises(KeyboardInterrupt), signals.held():
        signal.raise_signal(signal.SIGINT)
        assert signals.asked()
        signal.raise_signal(signal.SIGTERM)  # is no second interruption
        monkeypatch.setattr(signal, "signal", lambda number, handler: default.append(handler))
        monkeypatch.setattr(signal, "raise_signal", default.append)
        os.kill(os.getpid(), signal.SIGINT)
        assert default == [signal.SIG_DFL, signal.SIGINT]  # ends the process there
        monkeypatch.undo()


def test_a_folder_is_for_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = config(tmp_path / "cut")
    (run,) = interrupted(monkeypatch, [own], 2)
    taken = locks.take(run)
    assert locks.in_use(run)
    (refused,) = execute([own], folder=run)
    assert isinstance(refused, UserError) and "another process is using this run folder" in str(refused)
    assert made(execute([own], reuse=True)[0]) != run  # a sweep makes its own meanwhile
    locks.release(run, taken)
    assert not locks.in_use(run)
    assert made(execute([own], folder=run)[0]) == run


def test_a_run_that_was_killed_is_known_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "end", lambda run, error=None: os.close(run.folder._lock or -1))
    (run,) = interrupted(monkeypatch, [config(tmp_path)], 2)
    assert read_manifest(run)["state"] == "running"
    assert read_run(run).left_out == "not finished (killed, or running on another machine)"
    taken = locks.take(run)
    assert read_run(run).left_out == "not finished (running)"
    locks.release(run, taken)


def test_what_is_not_the_same_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = interrupted(monkeypatch, [config(tmp_path)], 2)
    (refused,) = execute([config(tmp_path, "trainer.lr=0.5", "losses.l1.top=1")], folder=run)
    line = f"{run}: cannot be resumed with another losses.l1.top, trainer.lr; leave them out, or start another run with"
    assert isinstance(refused, UserError) and str(refused) == f"{line} rerun={run}"
    changed = json.loads((run / "manifest.json").read_text()) | {"dataset_sha256": "another"}
    (run / "manifest.json").write_text(json.dumps(sealed(changed)))
    (refused,) = execute([config(tmp_path)], folder=run)
    assert isinstance(refused, UserError) and "the data set is not the one" in str(refused)
    assert read_manifest(run)["state"].startswith("failed")


def test_a_gradient_that_is_not_finite_ends_the_run_at_its_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = list[Fit]()
    begin, seen = Fit.__post_init__, [0]

    def built(own: Fit) -> None:
        begin(own)
        fit.append(own)

    class Broken(AbsoluteError):
        """The third one of update 4, of `bottom`'s certificate, has an infinite gradient."""

        def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            seen[0] += 1
            if fit[0].step == 4 and seen[0] % 3 == 0:
                outputs.register_hook(lambda gradient: gradient / 0)
            return super().__call__(outputs, targets)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "__post_init__", built)
        patch.setattr(Reconstruction, "default_error", Broken())
        (end,) = execute([config(tmp_path)])
    said = "update 4, epoch 1: the gradient of the certificate mae of group all, region bottom is not finite"
    assert isinstance(end, FloatingPointError) and str(end).startswith(said)
    (run,) = (tmp_path / "mnist_split").iterdir()
    assert read_manifest(run)["state"].startswith(f"failed ({said}")
    found = checkpoints.newest(run)
    assert found is not None and found.position.endswith(" 4 updates")
    assert made(execute([config(tmp_path)], folder=run)[0]) == run  # it was not the run's own fault


def test_a_folder_that_vanishes_is_said_to_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_checkpoint(monkeypatch, 3, lambda run: shutil.rmtree(run.folder.path))
    (error,) = execute([config(tmp_path)])
    assert isinstance(error, UserError) and "cannot be written (the folder is gone)" in str(error)


def test_the_runs_beside_one_whose_folder_is_gone_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_checkpoint(monkeypatch, 3, lambda run: shutil.rmtree(run.folder.path))  # the first one's
    first, second = execute([config(tmp_path, "stack=2", f"seed={seed}") for seed in (1, 2)])
    assert isinstance(first, UserError) and "cannot be written" in str(first)
    assert read_manifest(made(second))["state"] == "finished"


def test_a_disk_that_is_full_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        at_checkpoint(monkeypatch, 3, lambda run: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1])))
        (error,) = execute([config(tmp_path)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (run,) = (tmp_path / "mnist_split").iterdir()
    line = f"{run}: cannot be written (File too large); when it can, use gradroute-run resume={run}"
    assert isinstance(error, UserError) and str(error) == line
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000002", "000003"]
    monkeypatch.undo()
    assert made(execute([config(tmp_path)], folder=run)[0]) == run


@pytest.mark.parametrize("name", ["log.txt", "checkpoints", "plots", ".lock"])
def test_a_folder_with_links_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (run,) = interrupted(monkeypatch, [config(tmp_path)], 2)
    outside = tmp_path / "outside"
    if (run / name).exists():
        (run / name).rename(outside)
    else:
        outside.mkdir()
    (run / name).symlink_to(outside)
    before = outside.read_bytes() if outside.is_file() else sorted(outside.rglob("*"))
    (refused,) = execute([config(tmp_path)], folder=run)
    assert isinstance(refused, UserError) and "link" in str(refused)
    assert before == (outside.read_bytes() if outside.is_file() else sorted(outside.rglob("*")))


def test_a_run_can_keep_no_weights(tmp_path: Path) -> None:
    run = made(execute([config(tmp_path, "checkpoint.keep=none")])[0])
    assert not list(run.rglob("*.safetensors")) and not (run / "checkpoints").exists()
    with pytest.raises(UserError, match=r"kept no weights \(checkpoint.keep=none\)"):
        load(run)
    failed = [claim for claim in claims_of(run) if not claim.holds]
    assert [claim.found for claim in failed] == ["checkpoint.keep=none: the run kept no weights"]


@pytest.mark.slow
def test_the_commands_stop_and_go_on(forked: Callable[..., Result], data_cache: Path, tmp_path: Path) -> None:
    sizes = ["trainer=smoke", "trainer.train_limit=512", "model.hidden=[24]", "steps=[train,ablate,evaluate]"]
    script = Path(sys.executable).parent / "gradroute-run"
    call = [str(script), *sizes, "trainer.epochs=400", "trainer.batch_size=64", "ledger.window=1000"]
    environment = {**os.environ, "GRADROUTE_DATA": str(data_cache)}
    process = subprocess.Popen(call, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 3/" in line:
            break
    process.terminate()
    began = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - began < 10
    (run,) = (tmp_path / "outputs" / "mnist_split").iterdir()
    name = run.relative_to(tmp_path)
    assert read_manifest(run)["state"] == "interrupted"
    refused = forked("gradroute-run", f"resume={name}", "trainer.epochs=3", cwd=tmp_path)
    assert refused.returncode == 2 and f"{name}: cannot be resumed with another trainer.epochs" in refused.stderr
    finished = forked("gradroute-verify", str(name), cwd=tmp_path)
    assert finished.returncode == 2 and "the run is not finished (state: interrupted)" in finished.stderr
