"""Trackers get every row of the metrics, through their own clients and without a network."""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradroute
from gradroute.commands.run import main
from gradroute.comparison.compare import varying
from gradroute.comparison.runs import read_run
from gradroute.config.compose import configuration
from gradroute.errors import UserError
from gradroute.records.tables import read_metrics
from gradroute.running.trackers import require_consent
from gradroute.running.verify import verify

SMALL = ["trainer=smoke", "trainer.train_limit=128", "trainer.test_limit=64", "trainer.batch_size=64",
         "model.hidden=[16]", "trainer.device=cpu", "steps=[train,evaluate]"]  # fmt: skip
VALUE = ("test", "mse", "decoder", "all", "digits_0_4")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")


def made(tracker: str, *overrides: str) -> Path:
    return gradroute.run(*SMALL, f"tracker={tracker}", *overrides, quiet=True).path


def expected(run: Path) -> dict[int, float]:
    """The decoder's error on digits 0 to 4 in the run's own records, by update."""
    columns = ("split", "metric", "head", "region", "group")
    return {r["step"]: r["value"] for r in read_metrics(run) if tuple(r[c] for c in columns) == VALUE}


def test_there_is_none_by_default() -> None:
    assert gradroute.run(*SMALL, quiet=True).config["tracker"] is None


def test_tensorboard_has_event_files_in_the_run_folder() -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = made("tensorboard")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    found = {event.step: event.value for event in events.Scalars("/".join(VALUE))}
    assert found == pytest.approx(expected(run)) and found
    assert verify(run)


@pytest.mark.slow
def test_mlflow_has_a_run_with_the_configuration(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/tracked.db"
    run = made("mlflow", f"tracker.uri={uri}")
    client = mlflow.MlflowClient(tracking_uri=uri)
    (tracked,) = client.search_runs([client.get_experiment_by_name("mnist_split").experiment_id])
    assert tracked.info.status == "FINISHED" and tracked.data.params["trainer.batch_size"] == "64"
    history = client.get_metric_history(tracked.info.run_id, "/".join(VALUE))
    assert {point.step: point.value for point in history} == pytest.approx(expected(run))


def logged(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB, a header of 7 bytes to each piece; the file has 7 before all."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield record
            record = b""


@pytest.mark.slow
def test_wandb_writes_a_run_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    run = made("wandb")
    (file,) = tmp_path.rglob("offline-run-*/*.wandb")
    values = dict[int, float]()
    for data in logged(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "/".join(VALUE) in items:
            values[int(items["update"])] = float(items["/".join(VALUE)])
    assert values == pytest.approx(expected(run))


def test_one_that_is_not_installed_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(UserError, match=r"pip install 'gradroute\[mlflow\]'"):
        made("mlflow")
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_tracked_run_is_the_same_run() -> None:
    pytest.importorskip("tensorboard")
    plain, tracked = gradroute.run(*SMALL, quiet=True), gradroute.open_run(made("tensorboard"))
    assert plain.manifest["config_hash"] == tracked.manifest["config_hash"]
    assert not varying([read_run(plain.path), read_run(tracked.path)])
    assert plain.metrics.equals(tracked.metrics)


@pytest.mark.slow
def test_a_folder_does_not_say_alone_where_records_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/theirs.db"
    run = made("mlflow", f"tracker.uri={uri}")

    def rerun(*changes: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["gradroute-run", f"rerun={run}", *changes])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    capsys.readouterr()
    before = sorted(run.parent.iterdir())
    status, said = rerun()
    assert status == 2 and "error: tracker: " in said and uri in said and "tracker=null" in said
    assert sorted(run.parent.iterdir()) == before
    assert rerun("tracker=null")[0] == 0
    assert rerun(f"tracker.uri=sqlite:///{tmp_path}/ours.db")[0] == 0 and (tmp_path / "ours.db").is_file()


def test_an_online_tracker_needs_the_users_word() -> None:
    pytest.importorskip("wandb")
    config = configuration(["tracker=wandb", "tracker.mode=online"])
    with pytest.raises(UserError, match="sends its records to the server of Weights & Biases"):
        require_consent(config, ["seed"])
    require_consent(config, ["tracker.mode"])
    require_consent(configuration(["tracker=wandb"]), [])
