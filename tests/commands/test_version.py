"""`--version` of every command, and the same in a run's folder."""

import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
import torch

import gradroute

COMMANDS = tuple(f"gradroute-{n}" for n in ("audit", "compare", "export", "run", "search", "tokens", "verify"))


def test_every_command_is_here() -> None:
    found = {script.name for script in entry_points(group="console_scripts") if script.name.startswith("gradroute")}
    assert found == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_version_prints_what_a_bug_report_needs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--version"])
    with pytest.raises(SystemExit) as end:
        import_module(f"gradroute.commands.{name.removeprefix('gradroute-')}").main()
    printed = capsys.readouterr().out
    assert end.value.code == 0
    for said in (f"gradroute {gradroute.__version__}", f"python {platform.python_version()}", platform.platform(),
                 *(f"{package} {version(package)}" for package in ("torch", "hydra-core", "omegaconf", "numpy")),
                 f"threads {torch.get_num_threads()}", "cores "):  # fmt: skip
        assert said in printed, printed
    assert re.search(r"^device (cpu|cuda), precision (float32|bfloat16), ", printed, re.MULTILINE)
    assert "None" not in printed


def test_a_runs_folder_has_it_too(small: Path) -> None:
    manifest = json.loads((small / "manifest.json").read_text())
    assert manifest["packages"]["torch"] == version("torch") and manifest["python"] == platform.python_version()
    assert manifest["platform"] == platform.platform() and manifest["precision"] in ("float32", "bfloat16")
    assert manifest["device"] and manifest["hardware"]["threads"] >= 1 and "settings" in manifest
    assert None not in manifest["packages"].values()


WARNS = """
import sys, warnings
from gradroute.running.exit_status import guarded

def action():
    for kind in (UserWarning, FutureWarning, RuntimeWarning, DeprecationWarning):
        warnings.warn("something old", kind)
    print("done")

assert guarded(action) == 0
warnings.warn("after", UserWarning)
"""


@pytest.mark.parametrize("asked", [[], ["-W", "always"]], ids=["as it is", "asked for"])
def test_a_warning_of_a_dependency_does_not_reach_the_terminal(asked: list[str]) -> None:
    result = subprocess.run([sys.executable, *asked, "-c", WARNS], capture_output=True, text=True, check=True)
    assert result.stdout == "done\n" and "after" in result.stderr
    assert result.stderr.count("Warning: something old") == (4 if asked else 0)


def test_an_ordinary_run_prints_nothing_to_the_error_stream(forked: Callable[..., object], tmp_path: Path) -> None:
    sizes = ["trainer=smoke", "trainer.train_limit=128", "trainer.test_limit=64", "model.hidden=[32]"]
    result = forked("gradroute-run", *sizes, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")  # type: ignore[attr-defined]
