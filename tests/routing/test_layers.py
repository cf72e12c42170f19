"""The order config → data, model → routing → steps → records → report → compare, read from the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gradroute"
# folder of the package -> the others that it may import, at any depth in a file
ALLOWED = {
    "errors": set(),
    "routing": {"errors"},
    "config": {"errors", "routing"},
    "records": {"config", "errors"},
    "data": {"config", "errors", "records"},
    "models": {"config", "data", "errors", "records", "routing"},
    "training": {"config", "errors", "records", "routing"},
    "tasks": {"config", "data", "errors", "models", "records", "routing", "training"},
    "reporting": {"config", "errors", "records"},
    "comparison": {"config", "errors", "records", "reporting"},
    "audit": {"config", "data", "errors", "models", "records", "reporting", "routing", "tasks", "training"},
    "steps": {"audit", "config", "data", "errors", "models", "records", "reporting", "routing", "tasks", "training"},
    "running": {
        "audit", "comparison", "config", "errors", "models", "records", "reporting", "routing", "steps", "tasks",
        "training",
    },
    "search": {
        "comparison", "config", "data", "errors", "models", "records", "reporting", "routing", "running", "tasks",
        "training",
    },
    "commands": {
        "comparison", "config", "errors", "records", "reporting", "running", "search", "tasks", "training",
    },
    "__main__": {"commands"},
    "__init__": {"commands", "errors", "models", "routing", "tasks"},
}  # fmt: skip
# of a folder that others build on, all that they may have of it
DOORS = {("config", "routing"): {"gradroute.routing.routes"}}
NO_TORCH = ("errors", "__init__", "__main__", "config", "records", "reporting", "comparison")  # not even in a function
NO_TORCH_AT_FIRST = (
    *NO_TORCH, "commands", "routing.routes", "data.base", "data.hub", "training.signals", "training.stacking",
    "running.exit_status", "running.jobs", "running.launching", "running.plan", "search.schema", "search.space",
)  # fmt: skip
LATER = {"records/checkpoints.py"}  # reads and writes tensors, and imports torch when it does
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def of_torch(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in ("torch", "torchvision")}


@pytest.mark.parametrize("path", FILES, ids=[p.relative_to(PACKAGE).as_posix() for p in FILES])
def test_imports_follow_the_order(path: Path) -> None:
    place = path.relative_to(PACKAGE)
    own, names = place.with_suffix("").parts[0], imported(path)
    if own in NO_TORCH and place.as_posix() not in LATER:
        assert not of_torch(names)
    ours = {name for name in names if name.startswith("gradroute.")}
    assert {name.split(".")[1] for name in ours} - {own} <= ALLOWED[own]
    for (folder, other), doors in DOORS.items():
        if folder == own:
            through = {name for name in ours if name.startswith(f"gradroute.{other}")}
            assert all(any(f"{name}.".startswith(f"{door}.") for door in doors) for name in through)


def test_the_order_has_no_circle() -> None:
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        free = {own for own, others in ALLOWED.items() if own not in done and others <= done}
        assert free
        done |= free


def test_what_is_to_start_quickly_comes_without_torch() -> None:
    modules = [
        "gradroute." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in FILES
        if path.name not in ("__init__.py", "__main__.py")
    ]
    chosen = [m for m in modules if any(f"{m}.".startswith(f"gradroute.{name}.") for name in NO_TORCH_AT_FIRST)]
    assert len(chosen) > 40
    code = "import importlib, sys\n"
    code += f"for name in {chosen}: importlib.import_module(name); assert 'torch' not in sys.modules, name"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_top_level_is_what_was_agreed() -> None:
    agreed = {"pyproject.toml", "conf", "gradroute", "scripts", "outputs", "tests", "README.md", "LICENSE"}
    built = {"build", "dist"}
    assert {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - built == agreed


def test_modules_stay_small() -> None:
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 250, path
