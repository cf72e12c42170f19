"""Compare what was made again of a run's training with the ledger, the losses and the weights in its folder.

On the machine and the software of the run all numbers must be equal; elsewhere a tolerance is allowed.
"""

import copy
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records import checkpoints, provenance
from gradroute.records.tables import read_ledger, read_metrics
from gradroute.running.claims import Claim
from gradroute.running.replay import Replay, Rows, Segment, segments
from gradroute.training.environment import machine
from gradroute.training.weights import WEIGHTS, digest

TOLERANCE = 0.05  # relative, of losses and of the ledger's numbers, on another machine or in another number of runs
DRIFT = 0.5  # largest distance of final weights there, as a share of the way from the first weights to the run's
NUMBERS = ("points", "weight_min", "weight_max", "activation", "routed", "unrouted", "moved", "shifted")


def elsewhere(manifest: Mapping[str, Any], device: torch.device) -> str:
    """Return why a run's numbers cannot come out to the bit here; empty if they can."""
    here, made = machine(device), manifest.get("hardware", {})
    for name in ("processor", "threads", "gpu"):
        if made.get(name) != here.get(name):
            return f"its {name} was {made.get(name)}, here it is {here.get(name)}"
    torch_then, torch_now = manifest["packages"].get("torch"), provenance.version("torch")
    if torch_then != torch_now:
        return f"its torch was {torch_then}, here it is {torch_now}"
    if manifest.get("device") != str(device):
        return f"it was trained on {manifest.get('device')}, here on {device}"
    if manifest.get("exact") is False:
        return "it was trained without deterministic algorithms, see trainer.deterministic"
    return f"it was trained with {manifest['stacked'] - 1} others" if manifest.get("stacked", 1) > 1 else ""


def _worst(pairs: Iterable[tuple[float | None, float | None]]) -> tuple[int, float]:
    """Return the number of pairs and the largest relative difference; infinite if only one of a pair has a value."""
    count, worst = 0, 0.0
    for one, other in pairs:
        count += 1
        if one is None or other is None:
            worst = worst if one is None and other is None else math.inf
        elif not (math.isfinite(one) and math.isfinite(other)):
            worst = math.inf  # no finished run has such numbers
        elif one != other:
            worst = max(worst, abs(one - other) / max(abs(one), abs(other)))
    return count, worst


def _numbers(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a ledger row's numbers as the file has them, in six digits."""
    return {key: None if row[key] in (None, "") else float(f"{row[key]:.6g}") for key in NUMBERS}


def _ledger_pairs(made: Rows, recorded: Rows) -> Iterator[tuple[float | None, float | None]]:
    """Yield pairs of numbers of rows made again and of the run's; (1, None) for a row that it lacks."""
    keys = ("from_step", "to_step", "group", "region")
    known = {tuple(row[key] for key in keys): _numbers(row) for row in recorded}
    for row in made:
        other = known.get(tuple(row[key] for key in keys))
        if other is None:
            yield 1.0, None
        else:
            yield from ((value, other[key]) for key, value in _numbers(row).items())


def _loss_pairs(made: Rows, recorded: Rows) -> Iterator[tuple[float | None, float | None]]:
    """Yield pairs of training losses made again and of the run's."""
    keys = ("step", "group", "head", "region", "metric")
    known = {tuple(row[key] for key in keys): row["value"] for row in recorded if row["split"] == "train"}
    for row in made:
        yield float(f"{row['value']:.8g}"), known.get(tuple(row[key] for key in keys))


class Checker:
    """Claims about a run's training, checked by making parts of it again.

    Args:
        run: a finished run. manifest, config: its own; the device of `config` is set.

    Raises: UserError if the run has no digests of its weights.
    """

    def __init__(self, run: Path, manifest: Mapping[str, Any], config: Config) -> None:
        self.run, self.manifest, self.config = run, manifest, config
        self.links = [str(link) for link in manifest.get("weights", ())]
        if not self.links:
            why = "ledger.enabled=false, or an older version made it"
            raise UserError(f"{run}: cannot be made again: its manifest has no digests of its weights ({why})")
        self.ledger, self.metrics = read_ledger(run), read_metrics(run)
        self.windows = sorted({(int(row["from_step"]), int(row["to_step"])) for row in self.ledger})
        threads = manifest.get("hardware", {}).get("threads")
        if type(threads) is int and 1 <= threads <= (os.cpu_count() or 1):
            torch.set_num_threads(threads)

    def claims(self, count: int | None) -> Iterator[Claim]:
        """Yield the claims of the first window and of `count` others; of all if None."""
        expected = len(self.windows) + 1
        whole = bool(self.windows) and len(self.links) == expected
        found = f"{len(self.links)} digests, {len(self.windows)} windows"
        yield Claim("there is a digest of the weights before every window and after the last", whole, found)
        replay = Replay(self.run, self.manifest, self.config)
        names = list(replay.tensors())
        for number, segment in enumerate(segments(self.windows, checkpoints.kept(self.run), count) if whole else ()):
            if number:
                replay = Replay(self.run, self.manifest, self.config, replay.task.read)
            yield from self._segment(segment, replay)
        yield self._final(names)

    def _segment(self, segment: Segment, replay: Replay) -> Iterator[Claim]:
        """Yield the claims of one segment; `replay` has not trained yet."""
        first = {name: tensor.clone() for name, tensor in replay.tensors().items()}
        reason = elsewhere(self.manifest, replay.task.device)
        checkpoint = checkpoints.read_kept(self.run, segment.start) if segment.start else None
        rows = replay.train(checkpoint, None if segment.stop == self.windows[-1][1] else segment.stop)
        what = f"updates {segment.start} to {segment.stop}, made again, give the run's"
        allowed, how = (TOLERANCE, f"; at most {TOLERANCE} is allowed, since {reason}") if reason else (0.0, "")
        given = [row for row in self.ledger if segment.start <= row["from_step"] < segment.stop]
        for name, pairs in {
            "ledger": [*_ledger_pairs(rows, given), *([(1.0, None)] if len(rows) != len(given) else [])],
            "training losses": list(_loss_pairs(replay.folder.rows, self.metrics)),
        }.items():
            number, worst = _worst(pairs)
            found = f"{number} numbers, largest relative difference {worst:.1e}{how}"
            if number:
                yield Claim(f"{what} {name}", worst <= allowed, found)
        if not reason:
            place = segment.start // self.config.ledger.window
            made, links = replay.links[place:], self.links[place : len(replay.links)]
            same = sum(one == other for one, other in zip(made, links, strict=False))  # a forged ledger may be shorter
            yield Claim(f"{what} weights", made == links, f"{same} of {len(made)} digests agree")
        elif segment == Segment(0, self.windows[-1][1]):
            yield self._near(first, replay, reason)

    def _near(self, first: Mapping[str, torch.Tensor], replay: Replay, reason: str) -> Claim:
        """Return whether the weights came out near the run's, for a machine where they cannot be the same."""
        made, kept = replay.tensors(), self._weights(list(first))
        gone = math.sqrt(sum(float((made[n] - kept[n]).double().square().sum()) for n in first))
        way = math.sqrt(sum(float((kept[n] - first[n]).double().square().sum()) for n in first))
        share = gone / max(way, 1e-30)
        found = f"{share:.2g} of the way from the first weights apart; at most {DRIFT} is allowed, since {reason}"
        return Claim("the training, made again, ends near the run's weights", share <= DRIFT, found)

    def _weights(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        with safe_open(self.run / WEIGHTS, "pt") as file:
            return {name: file.get_tensor(name) for name in names}

    def _final(self, names: Sequence[str]) -> Claim:
        what = "the run's weights are those that its training ended with"
        if WEIGHTS not in self.manifest["files"]:
            return Claim(what, False, "it kept no weights")
        same = digest(self._weights(names)) == self.links[-1]
        return Claim(what, same, "the digest agrees" if same else "the digest differs")


def replay_claims(run: Path, manifest: Mapping[str, Any], config: Config, count: int | None) -> Iterator[Claim]:
    """Yield claims that are checked by making the first window and `count` others again; all windows if None.

    Raises: UserError if the run has no digests of its weights, or a kept checkpoint is damaged.
    """
    device = str(manifest.get("device", "cpu"))
    config = copy.deepcopy(config)
    config.trainer.device = device if device.startswith("cuda") and torch.cuda.is_available() else "cpu"
    yield from Checker(run, manifest, config).claims(count)
