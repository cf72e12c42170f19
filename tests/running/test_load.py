"""Many runs started together, on one cold cache and one output folder: all finish, and none damages what is shared."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from robust import Tally

from gradroute.data.images.packaged import MNIST_SHA256
from gradroute.running.verify import claims_of

SMALL = [
    "trainer.epochs=1", "trainer.train_limit=256", "trainer.test_limit=64", "model.hidden=[32]",
    "steps=[train,ablate,evaluate]",
]  # fmt: skip
SECONDS = 900


def run(number: int, folder: Path, overrides: list[str]) -> Tally:
    """Start `number` smoke runs at once in `folder` and look at what they leave."""
    folder.mkdir(parents=True, exist_ok=True)
    call = [str(Path(sys.executable).parent / "gradroute-run"), "experiment=mnist_split", "trainer=smoke", *overrides]
    environment = {**os.environ, "GRADROUTE_DATA": str(folder / "cache")}
    started = [
        subprocess.Popen(call, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(number)
    ]
    tally = Tally()
    ends = [process.communicate(timeout=SECONDS)[0] for process in started]
    runs = sorted(path.parent for path in folder.glob("outputs/*/*/manifest.json"))
    for process, printed in zip(started, ends, strict=True):
        tally.add("a run", "correct" if process.returncode == 0 else f"status {process.returncode}: {printed[-300:]}")
    if len(runs) != number:
        tally.wrong.append(f"{len(runs)} run folders for {number} runs")
    for run in runs if not tally.wrong else ():
        state = json.loads((run / "manifest.json").read_text())["state"]
        failed = [claim.what for claim in claims_of(run) if not claim.holds]
        if state != "finished" or failed:
            tally.wrong.append(f"{run.name}: {state}, {failed}")
    cache = folder / "cache" / "MNIST" / "raw"
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in cache.iterdir()}
    if found != MNIST_SHA256:
        tally.wrong.append(f"the cache holds {found}")
    return tally


@pytest.mark.slow
def test_runs_started_together_on_a_cold_cache_all_finish(tmp_path: Path) -> None:
    tally = run(2, tmp_path, SMALL)
    assert not tally.wrong and tally.correct == 2, "\n".join(tally.wrong)
