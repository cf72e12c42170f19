"""Damage any byte range of any file of a finished run: reading it is refused, or right; nothing else."""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from robust import Hang, Tally, count, kept_data, one_line, trying, within
from small_images import FILES
from small_images import small as small_config

import gradroute
from gradroute.comparison.compare import compare
from gradroute.config.identity import to_mapping
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records.run_reader import read_rerun
from gradroute.reporting.run_data import RunData
from gradroute.reporting.run_page import run_page
from gradroute.running.run import Run
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of

SECONDS = 60  # no command may take longer


@dataclass(frozen=True)
class Damage:
    """One change of one file, by number: `length` bytes from `start`, both numbers taken modulo what there is."""

    kind: str
    file: int
    start: int
    length: int
    value: int

    def apply(self, content: bytes) -> bytes:
        """The damaged content."""
        at = self.start % max(1, len(content))
        before, hit, after = content[:at], content[at : at + self.length], content[at + self.length :]
        return {
            "flip": lambda: before + bytes(byte ^ self.value for byte in hit) + after,
            "delete": lambda: before + after,
            "truncate": lambda: before,
            "insert": lambda: before + bytes([self.value]) * self.length + hit + after,
            "zero": lambda: before + bytes(len(hit)) + after,
        }[self.kind]()


damages = st.builds(
    Damage,
    kind=st.sampled_from(["flip", "delete", "truncate", "insert", "zero"]),
    file=st.integers(0, 2**20),
    start=st.integers(0, 2**40),
    length=st.one_of(st.just(1), st.integers(1, 20), st.integers(1, 5000)),
    value=st.integers(1, 255),
)


def _printed(run: Path) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        compare([str(run)], form="csv")
    return out.getvalue()


def _weights(run: Path) -> list[tuple[str, str]]:
    loaded = gradroute.load(run)
    state = {**loaded.model.state_dict(), **loaded.certificates.state_dict()}
    return [(name, hashlib.sha256(tensor.numpy().tobytes()).hexdigest()) for name, tensor in state.items()]


def _scene(run: Path) -> list[Any]:
    scene = RunData(run)
    arrays = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in scene.arrays.items()}
    return [scene.rows, scene.ledger, scene.names, arrays]


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "compare": _printed,
    "verify": lambda run: list(claims_of(run)),
    "load": _weights,
    "page": lambda run: run_page(run).read_text(),
    "scene": _scene,
    "rerun": lambda run: to_mapping(read_rerun(run)),
}


def _judge(name: str, run: Path, right: Any, changed: bool) -> str:
    """`correct`, `refused`, or what went wrong."""
    try:
        with within(SECONDS):
            answer = COMMANDS[name](run)
    except UserError as error:
        return "refused" if one_line(error) else f"not one line: {error!s:.200}"
    except (Hang, Exception) as error:
        return f"{type(error).__name__}: {error!s:.200}"
    if name == "verify" and changed and not all(claim.holds for claim in answer):
        return "refused"
    return "correct" if answer == right and not (name == "verify" and changed) else "another answer"


class Damaged:
    """A run folder to damage again and again; what is not damaged is linked to the sound one."""

    def __init__(self, sound: Path, folder: Path) -> None:
        self.sound, self.run = sound, folder / "damaged"
        self.files = sorted(p.relative_to(sound).as_posix() for p in sound.rglob("*") if p.is_file())
        self._fresh()
        self.right = {name: command(self.run) for name, command in COMMANDS.items()}

    def _fresh(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.sound, self.run, copy_function=os.link)

    def attempt(self, damage: Damage, tally: Tally) -> None:
        """Try every command on the folder with one damage."""
        self._fresh()
        name = self.files[damage.file % len(self.files)]
        content = (self.sound / name).read_bytes()
        damaged = damage.apply(content)
        (self.run / name).unlink()
        (self.run / name).write_bytes(damaged)
        changed = damaged != content and name != "manifest.json"
        found = {command: _judge(command, self.run, self.right[command], changed) for command in COMMANDS}
        bad = {command: end for command, end in found.items() if end not in ("correct", "refused")}
        good = "refused" if "refused" in found.values() else "correct"
        tally.add(f"{name} {damage}", str(bad) if bad else good)


def run(cases: int, sound: Path, folder: Path) -> Tally:
    """Damage the finished run `sound` in `cases` ways, working in `folder`."""
    damaged, tally = Damaged(sound, folder), Tally()

    @trying(cases)
    @given(damages)
    def attempt(damage: Damage) -> None:
        damaged.attempt(damage, tally)

    with kept_data():
        attempt()
    return tally


@pytest.mark.slow
def test_damage_is_refused_or_harmless(small: Path, tmp_path: Path) -> None:
    tally = run(count("GRADROUTE_CORRUPTIONS", 40), small, tmp_path)
    assert not tally.wrong, "\n".join(tally.wrong[:5])
    assert tally.refused > tally.tried // 2


def test_a_manifest_without_its_checksum_is_damaged(small: Path, tmp_path: Path) -> None:
    run = shutil.copytree(small, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        read_rerun(run)


class _Gone(BaseException):
    """The process is gone."""


def _interrupted(config: Config, checkpoints: int) -> Path:
    """Begin a run and lose the process after some checkpoints; returns its folder."""
    save, made = Run.checkpoint, [0]

    def checkpoint(run: Run, fit: Any = None) -> None:
        save(run, fit)
        made[0] += 1
        if made[0] == checkpoints:
            raise _Gone

    with contextlib.suppress(_Gone), mock.patch.object(Run, "checkpoint", checkpoint):
        execute([config])
    (manifest,) = Path(config.output_dir).glob("*/*/manifest.json")
    return manifest.parent


def run_interrupted(cases: int, folder: Path) -> Tally:
    """Damage a run that was interrupted in `cases` ways and go on with it, working in `folder`."""
    tally, out = Tally(), io.StringIO()
    sizes = ["trainer.train_limit=200", "model.hidden=[24]", "checkpoint.minutes=0"]
    whole, cut = (small_config(*sizes, f"output_dir={folder / name}") for name in ("whole", "cut"))
    with kept_data(), contextlib.redirect_stdout(out):
        (reference,) = execute([whole])
        sound, damaged = _interrupted(cut, 9), folder / "damaged"
        assert isinstance(reference, Path)
        files = sorted(p.relative_to(sound).as_posix() for p in sound.rglob("*") if p.is_file())

        @trying(cases)
        @given(damages)
        def attempt(damage: Damage) -> None:
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(sound, damaged)
            name = files[damage.file % len(files)]
            (damaged / name).write_bytes(damage.apply((sound / name).read_bytes()))
            try:
                with within(SECONDS):
                    (outcome,) = execute([cut], folder=damaged)
            except Hang as error:
                outcome = RuntimeError(str(error))
            if isinstance(outcome, UserError):
                end = "refused" if one_line(outcome) else f"not one line: {outcome!s:.200}"
            elif isinstance(outcome, Path):
                differ = [f for f in FILES if (damaged / f).read_bytes() != (reference / f).read_bytes()]
                end = f"another answer in {differ}" if differ else "correct"
            else:
                end = f"{type(outcome).__name__}: {outcome!s:.200}"
            tally.add(f"{name} {damage}", end)

        attempt()
    return tally


@pytest.mark.slow
def test_a_damaged_run_goes_on_right_or_not_at_all(tmp_path: Path) -> None:
    tally = run_interrupted(count("GRADROUTE_INTERRUPTED_CASES", 10), tmp_path)
    assert tally.correct and not tally.wrong, "\n".join(tally.wrong)
