"""What CI checks beside the tests: linters, types, the README's commands, every experiment, and a wheel install."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "conf" / "experiment"
DOWNLOADED = {"cifar100_split"}  # their data need a network; tests run them on data of the tests' own
FILES = [path for path in FOLDER.rglob("*.yaml") if not path.name.startswith("_")]  # those are what others share
EXPERIMENTS = sorted({path.relative_to(FOLDER).with_suffix("").as_posix() for path in FILES} - DOWNLOADED)


def call(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command; on failure, fail with everything it printed."""
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def readme_commands(name: str = "gradroute-run") -> list[str]:
    """Every line with a command that the README prints, except those that need an earlier run or a download."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(name) and "RUN" not in line and "FOLDER" not in line]


@pytest.mark.parametrize(
    "command", [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)], ids=" ".join
)
def test_linters_and_types_are_clean(command: tuple[str, ...]) -> None:
    call(*command)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment: str, tmp_path: Path) -> None:
    certified = ["steps=[train,certify,ablate,evaluate,report]"] if experiment.startswith(("mnist", "class")) else []
    call("gradroute-run", f"experiment={experiment}", "trainer=smoke", *certified, cwd=tmp_path)
    for run in tmp_path.glob("outputs/*/*/manifest.json"):
        call("gradroute-verify", run.parent, cwd=tmp_path)


@pytest.mark.parametrize("line", readme_commands())
def test_the_readme_commands_run(line: str, tmp_path: Path) -> None:
    for folder, text in own_configurations().items():
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder).write_text(text)
    call(*shlex.split(line, comments=True), "trainer=smoke", cwd=tmp_path)


SEARCHED = [
    "trainer=smoke", "trainer.train_limit=512", "trainer.test_limit=64", "search.trials=2", "search.random=1",
    "search.workers=1", "search.final.best=1", "search.final.seeds=2", "search.guess=null",
]  # fmt: skip


@pytest.mark.parametrize("line", readme_commands("gradroute-search"))
def test_the_readme_searches_run(line: str, tmp_path: Path) -> None:
    for folder, text in own_configurations().items():
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder).write_text(text)
    call(*shlex.split(line, comments=True), *SEARCHED, cwd=tmp_path)
    (page,) = tmp_path.glob("outputs/searches/*/search.html")
    assert "minus the hand-made mask" in page.read_text()


def own_configurations() -> dict[str, str]:
    """The YAML files that the README shows, by the path on their first line."""
    blocks = re.findall(r"```yaml\n# (\S+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return dict(blocks)


def test_a_wheel_has_the_configurations_and_the_data(tmp_path: Path) -> None:
    call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    call(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel)
    site, cache = str(tmp_path / "site"), str(tmp_path / "data")
    origin = call(sys.executable, "-c", "import gradroute; print(gradroute.__file__)", cwd=tmp_path, PYTHONPATH=site)
    assert Path(origin.strip()).is_relative_to(tmp_path / "site")
    arguments = (sys.executable, "-m", "gradroute.commands.run", "trainer=smoke")
    call(*arguments, cwd=tmp_path, PYTHONPATH=site, GRADROUTE_DATA=cache)
