"""`gradroute-verify --replay`: honest runs come out again, and folders whose parts do not belong together are found."""

import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from gradroute.config.compose import composed, configuration
from gradroute.errors import UserError
from gradroute.records.atomic import sha256_of
from gradroute.records.checkpoints import ABOUT, STATE, WEIGHTS
from gradroute.records.seal import sealed
from gradroute.running.replay import Segment, segments
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.training.weights import digest

SMALL = [
    "trainer=smoke", "trainer.train_limit=512", "trainer.test_limit=64", "trainer.batch_size=64", "trainer.epochs=2",
    "steps=[train,ablate,evaluate]", "model.hidden=[32]", "ledger.window=5", "ledger.every=3", "checkpoint.replay=2",
    "trainer.device=cpu",
]  # fmt: skip


def made(folder: Path, *overrides: str) -> Path:
    (run,) = execute([configuration([*SMALL, f"output_dir={folder}", *overrides])])
    assert isinstance(run, Path), run
    return run


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("honest"))


@pytest.fixture(scope="module")
def unrouted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(
        tmp_path_factory.mktemp("unrouted"), "routing.routes.digits_0_4.bottom=1", "routing.routes.digits_5_9.top=1"
    )


def failing(run: Path, count: int | str = 0) -> list[str]:
    return [claim.what for claim in claims_of(run, replay=count) if not claim.holds]


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(sealed(content)))


def fit_checksums(run: Path) -> None:
    """Make every checksum of a folder fit what is in it."""
    for about in run.glob(f"replay/*/{ABOUT}"):
        sums = {name: sha256_of(about.parent / name) for name in (WEIGHTS, STATE)}
        edit_json(about, lambda content, sums=sums: content.update(sha256=sums))  # type: ignore[misc]
    names = [p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file() and p.name != "manifest.json"]
    edit_json(run / "manifest.json", lambda content: content.update(files={n: sha256_of(run / n) for n in names}))


def edit_table(path: Path, column: str, chosen: Callable[[dict[str, str]], bool]) -> None:
    """Raise the last number of a column by a hundredth among the rows that are chosen."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    row = [row for row in rows if chosen(row)][-1]
    row[column] = f"{1.01 * float(row[column]):.6g}"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def other_weights(run: Path, other: Path) -> None:
    """The weights and the metrics of a model that was never routed, beside a routed run's ledger."""
    for name in ("model.safetensors", "metrics.csv", "summary.json"):
        shutil.copy(other / name, run / name)


def links_of(run: Path) -> list[str]:
    links: list[str] = json.loads((run / "manifest.json").read_text())["weights"]
    return links


def last_digest(run: Path, other: Path) -> None:
    """The same, and the last digest is that of these weights."""
    other_weights(run, other)
    edit_json(run / "manifest.json", lambda content: content["weights"].__setitem__(-1, links_of(other)[-1]))


def all_digests(run: Path, other: Path) -> None:
    """The same, and all digests and kept checkpoints are those of the training that was never routed."""
    other_weights(run, other)
    edit_json(run / "manifest.json", lambda content: content.update(weights=links_of(other)))
    shutil.rmtree(run / "replay")
    shutil.copytree(other / "replay", run / "replay")


def a_ledger_number(run: Path, other: Path) -> None:
    """A norm in the ledger is raised."""
    edit_table(run / "ledger.csv", "routed", lambda row: row["routed"] not in ("", "0"))


def a_loss(run: Path, other: Path) -> None:
    """A training loss is changed."""
    edit_table(run / "metrics.csv", "value", lambda row: row["split"] == "train" and row["metric"] == "mae")


def another_seed(run: Path, other: Path) -> None:
    """The configuration names another seed."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"seed": 7}, sort_keys=False))
    edit_json(run / "manifest.json", lambda content: content.update(seed=7))


def tuned_weights(run: Path, other: Path) -> None:
    """A weight that no test image reaches was changed after the training, and the last digest was made to fit."""
    weights = load_file(run / "model.safetensors")
    name = "decoder.linear0.bias" if "decoder.linear0.bias" in weights else sorted(weights)[0]
    weights[name] = weights[name] + 1e-6
    save_file(weights, run / "model.safetensors")
    edit_json(run / "manifest.json", lambda content: content["weights"].__setitem__(-1, digest(weights)))


def a_checkpoint(run: Path, other: Path) -> None:
    """A kept checkpoint has the weights of the training that was never routed."""
    last = sorted((run / "replay").iterdir())[-1].name
    shutil.copy(other / "replay" / last / WEIGHTS, run / "replay" / last / WEIGHTS)


def a_moment(run: Path, other: Path) -> None:
    """The optimizer's state in a kept checkpoint was changed."""
    path = sorted((run / "replay").iterdir())[-1] / STATE
    state = torch.load(path, weights_only=True)
    for moment in state["fit"]["moments"].values():
        moment["exp_avg"] += 1e-3
    torch.save(state, path)


FORGERIES: list[Callable[[Path, Path], None]] = [
    other_weights, last_digest, all_digests, a_ledger_number, a_loss, another_seed, tuned_weights, a_checkpoint,
    a_moment,
]  # fmt: skip


@pytest.mark.parametrize("count", [1, 3, "all"])
def test_an_honest_run_comes_out_again(honest: Path, count: int | str) -> None:
    claims = [claim for claim in claims_of(honest, replay=count) if "made again" in claim.what]
    assert all(claim.holds for claim in claims) and len(claims) >= 3
    assert failing(honest, count) == []
    assert [p.name for p in sorted((honest / "replay").iterdir())] == ["000010", "000015"]  # of 16 updates


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_forged_folder_is_found(
    forge: Callable[[Path, Path], None], honest: Path, unrouted: Path, tmp_path: Path
) -> None:
    run = tmp_path / honest.name
    shutil.copytree(honest, run)
    forge(run, unrouted)
    fit_checksums(run)
    found = failing(run, 3)  # all four windows, from kept checkpoints
    replayed = [what for what in found if "made again" in what or "its training ended with" in what]
    assert found and found == replayed  # what the files alone tell still holds


def test_a_training_that_was_never_routed_is_found_from_the_seed(honest: Path, unrouted: Path, tmp_path: Path) -> None:
    run = tmp_path / honest.name
    shutil.copytree(honest, run)
    all_digests(run, unrouted)
    fit_checksums(run)
    assert failing(run) == []
    assert "updates 0 to 16, made again, give the run's weights" in failing(run, "all")


def test_a_ledger_without_its_last_window_is_found(honest: Path, tmp_path: Path) -> None:
    run = tmp_path / honest.name
    shutil.copytree(honest, run)
    rows = (run / "ledger.csv").read_text().splitlines(keepends=True)
    (run / "ledger.csv").write_text("".join(row for row in rows if not row.startswith("15,")))
    edit_json(run / "manifest.json", lambda content: content.update(weights=content["weights"][:-1]))
    fit_checksums(run)
    assert "updates 0 to 15, made again, give the run's weights" in failing(run, "all")


def test_another_machine_is_compared_within_a_tolerance(
    honest: Path, unrouted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, other in (("same", None), ("forged", unrouted)):
        run = tmp_path / name
        shutil.copytree(honest, run)
        edit_json(run / "manifest.json", lambda content: content["packages"].update(torch="1.0"))
        if other:
            all_digests(run, other)
        fit_checksums(run)
        claims = [claim for claim in claims_of(run, replay="all") if "made again" in claim.what]
        assert all("its torch was 1.0" in claim.found for claim in claims) and len(claims) == 3
        assert all(claim.holds for claim in claims) == (other is None)


@pytest.mark.slow
def test_a_run_that_was_killed_keeps_the_same_digests(honest: Path, tmp_path: Path) -> None:
    from gradroute.records.run_reader import read_manifest
    from gradroute.running.lockstep import Checkpointer

    stopped: list[bool] = []
    after_update = Checkpointer.after_update

    def stop(self: Checkpointer) -> None:
        after_update(self)
        if self.fit.step == 12 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "after_update", stop)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path, "checkpoint.minutes=0")
    (run,) = tmp_path.glob("*/*")
    (resumed,) = execute([configuration([*SMALL, f"output_dir={tmp_path}", "checkpoint.minutes=0"])], reuse=True)
    assert resumed == run and read_manifest(run).get("resumed")
    assert links_of(run) == links_of(honest) and failing(run, 3) == []


def test_windows_are_made_from_the_nearest_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [(0, 5), (5, 10), (10, 15), (15, 16)]
    assert segments(windows, [10], None) == [Segment(0, 16)]
    assert segments(windows, [10], 3) == [Segment(0, 10), Segment(10, 16)]
    assert segments(windows, [], 9) == [Segment(0, 16)]
    monkeypatch.setattr(random.SystemRandom, "sample", lambda self, given, count: [given[-1]])
    assert segments(windows, [5, 15], 1) == [Segment(0, 5), Segment(15, 16)]
    assert segments(windows, [10], 1) == [Segment(0, 5), Segment(10, 16)]


def test_a_run_without_digests_cannot_be_made_again(tmp_path: Path) -> None:
    run = made(tmp_path, "ledger.enabled=false", "checkpoint.replay=0")
    with pytest.raises(UserError, match="its manifest has no digests of its weights"):
        list(claims_of(run, replay=1))
    with pytest.raises(UserError, match=r"checkpoint.replay=2: .*ledger.enabled"):
        made(tmp_path / "other", "ledger.enabled=false")


@pytest.mark.slow
def test_the_command_line_takes_windows_or_all(honest: Path, forked: Callable[..., Any], tmp_path: Path) -> None:
    result = forked("gradroute-verify", str(honest), "--replay", "all", cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.count("updates 0 to 16, made again") == 3, result.stdout
    result = forked("gradroute-verify", str(honest), "--replay", "1", cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.count("made again, give the") >= 2, result.stdout
    result = forked("gradroute-verify", str(honest), "--replay", "some", cwd=tmp_path)
    assert result.returncode == 2 and "'some': must be a number of windows, such as 3, or all" in result.stderr
    assert composed(SMALL).checkpoint.replay == 2
