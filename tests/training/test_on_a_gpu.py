"""On a GPU: captured, compiled and plain updates agree, freezing holds to the bit, and a rerun repeats itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gradroute.config.compose import configuration
from gradroute.records.tables import read_ledger, read_metrics
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
SMALL = ["trainer=smoke", "trainer.device=cuda", "trainer.precision=float32", "trainer.epochs=3", "ledger.every=3",
         "ledger.window=7", "steps=[train,certify,ablate,evaluate]"]  # fmt: skip
IMAGES = ["experiment=mnist_split", "trainer.train_limit=640", "trainer.test_limit=64", "trainer.batch_size=64",
          "model.hidden=[64,32]"]  # fmt: skip
STORIES = ["experiment=stories_era", "dataset.stories=160", "dataset.test_stories=40", "dataset.length=64",
           "model.width=32", "model.heads=2", "completions=null", "steps=[train,ablate,evaluate]",
           "relearn=null"]  # fmt: skip


def finished(folder: Path, *settings: str) -> list[Path]:
    outcomes = execute_all(folder, *settings)
    for outcome in outcomes:
        assert isinstance(outcome, Path), outcome
    return outcomes


def execute_all(folder: Path, *settings: str) -> list[Any]:
    own = configuration([*SMALL, *settings, f"output_dir={folder}"])
    from gradroute.config.identity import one_by_seed

    return execute(one_by_seed(own))


def losses(run: Path) -> list[float]:
    return [row["value"] for row in read_metrics(run) if row["split"] == "train"]


@pytest.mark.parametrize("given", [IMAGES, [*IMAGES, "seeds=3", "stack=3"], STORIES, [*IMAGES, "trainer.accumulate=2",
                         "losses.correlation=0"]], ids=["image", "stack", "stories", "parts"])  # fmt: skip
def test_captured_updates_are_those_made_one_by_one(given: list[str], tmp_path: Path) -> None:
    plain = finished(tmp_path / "plain", *given, "trainer.graph=false", "trainer.deterministic=true")
    fast = finished(tmp_path / "fast", *given, "trainer.graph=true", "trainer.deterministic=true")
    for one, other in zip(plain, fast, strict=True):
        assert "could not be captured" not in (other / "log.txt").read_text()
        assert losses(one) == pytest.approx(losses(other), rel=1e-4)
        rows = [
            [row[key] for key in ("points", "routed", "unrouted")] for run in (one, other) for row in read_ledger(run)
        ]
        half = len(rows) // 2
        for ours, theirs in zip(rows[:half], rows[half:], strict=True):
            assert [x or 0 for x in ours] == pytest.approx([x or 0 for x in theirs], rel=1e-2, abs=1e-6)


def test_compiled_updates_are_those_of_the_model_as_it_is(tmp_path: Path) -> None:
    plain, fast = (finished(tmp_path / value, *STORIES, f"trainer.compile={value}") for value in ("false", "auto"))
    assert "torch.compile fails" not in (fast[0] / "log.txt").read_text()
    assert losses(plain[0]) == pytest.approx(losses(fast[0]), rel=1e-3)


@pytest.mark.parametrize("given", [IMAGES, STORIES], ids=["images", "stories"])
def test_a_rerun_agrees_to_the_bit_and_replays(given: list[str], tmp_path: Path) -> None:
    one, other = (finished(tmp_path / name, *given, "trainer.deterministic=true")[0] for name in ("one", "other"))
    for name in ("metrics.csv", "ledger.csv", "model.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert all(claim.holds for claim in claims_of(one, replay="all"))


def test_what_a_parameter_route_freezes_does_not_move(tmp_path: Path) -> None:
    extra = ["routing.regions.own={parameters: {encoder.0.weight: '0:8'}}", "routing.routes.digits_0_4.own=0",
             "routing.routes.digits_5_9.own=0"]  # fmt: skip
    (run,) = finished(tmp_path, *IMAGES, *extra)
    shifted = [row["shifted"] for row in read_ledger(run) if row["region"] == "own" and row["group"] == "all"]
    assert shifted and all(number == 0 for number in shifted)
