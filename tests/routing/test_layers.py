"""The order config → dataset, model → routing → steps → records → report → compare, read from the imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gradroute"
# module -> what it may import of the package, at any depth in the file
ALLOWED = {
    "errors": set(),
    "language_schema": set(),
    "image_schema": set(),
    "schema": {"image_schema", "language_schema"},
    "routes": {"errors"},
    "checks": {"errors", "routes", "schema"},
    "image_checks": {"checks", "errors", "image_schema", "schema"},
    "split": {"checks", "errors", "image_checks", "schema"},
    "language_checks": {"checks", "errors", "language_schema", "schema"},
    "config": {"checks", "errors", "image_checks", "language_checks", "schema", "split"},
    "image_files": {"errors", "reading"},
    "datasets": {"errors", "image_files", "reading", "schema"},
    "augmentation": {"image_schema"},
    "resnet": {"image_schema"},
    "models": {"errors", "expansion", "language_schema", "resnet", "schema", "transformer"},
    "groups": {"errors", "schema", "text"},
    "hub": {"errors"},
    "text": {"errors", "hub", "text"},
    "transformer": {"errors"},
    "corpora": {"errors", "language_schema", "schema", "text"},
    "causal_lm": {"errors", "hub", "transformer"},
    "language_models": {"language_schema", "models", "pretrained", "schema", "text"},
    "pretrained": {
        "causal_lm",
        "errors",
        "expansion",
        "folders",
        "hub",
        "language_models",
        "language_schema",
        "models",
        "reading",
        "text",
    },
    "shares": {"corpora", "schema", "text"},
    "completion": {"errors", "routing"},
    "language_texts": {"completion", "corpora", "errors", "evaluation", "language_schema", "schema", "text"},
    "routing": {"errors", "routes", "routing"},
    "expansion": {"errors"},
    "losses": {"routing", "schema", "text"},
    "image_losses": {"losses", "routing", "schema"},
    "processes": {"errors", "image_checks", "routing", "schema", "stopping"},
    "devices": {"errors", "locks", "processes"},
    "memory": {"errors", "models", "routing", "schema"},
    "values": {"losses"},
    "programs": {"losses", "processes", "routing", "schema", "values"},
    "compiling": {"errors", "losses"},
    "training": {"compiling", "devices", "losses", "processes", "programs", "routing", "schema", "values"},
    "stacking": {"config", "errors", "schema"},
    "ablation": {"errors", "expansion", "routing"},
    "ledger": {"records", "routing"},
    "evaluation": {"ablation", "routing"},
    "progress": {"losses"},
    "provenance": set(),
    "reading": {"errors"},
    "locks": {"errors"},
    "stopping": set(),
    "records": {"config", "errors", "locks", "provenance", "schema"},
    "checkpoints": {"errors", "reading", "records"},
    "folders": {"config", "errors", "locks", "provenance", "reading", "records", "schema"},
    "scene": {"errors", "folders", "reading", "records"},
    "language_report": {"scene"},
    "classification_report": {"scene"},
    "report": {"classification_report", "language_report", "scene"},
    "command": {"errors", "schema"},
    "published": set(),
    "language_page": {"errors", "folders", "reading"},
    "steering_page": {"language_page"},
    "page": {"folders", "language_page", "steering_page", "published", "reading", "records"},
    "comparison_plots": {"collecting"},
    "intervals": set(),
    "language_comparison": {"collecting", "comparison_plots", "errors", "folders", "intervals", "language_page"},
    "tables": {"comparison_plots", "errors", "language_comparison", "page", "records"},
    "collecting": {"config", "errors", "folders", "published", "reading"},
    "overrides": set(),
    "jobs": {"collecting", "command", "devices", "errors", "folders", "records", "runner", "schema"},
    "plan": {"collecting", "command", "compare", "errors", "jobs", "records", "runner"},
    "launching": {"errors", "jobs", "overrides"},
    "composing": {"cli", "config", "schema"},
    "search_schema": {"errors", "records"},
    "search_space": {"errors", "overrides"},
    "search_objectives": {"errors", "language_page", "schema", "search_schema"},
    "search_finals": {
        "command",
        "errors",
        "folders",
        "intervals",
        "task",
        "runner",
        "schema",
        "search",
        "search_objectives",
        "search_space",
    },
    "search_page": {"comparison_plots", "page", "records", "search", "search_finals"},
    "compare": {
        "collecting",
        "command",
        "errors",
        "intervals",
        "language_comparison",
        "published",
        "records",
        "tables",
    },
}
# these put the parts together
TOP = {
    "__init__",
    "classification",
    "cli",
    "continuing",
    "images",
    "language",
    "loading",
    "task",
    "reconstruction",
    "run",
    "runner",
    "samples",
    "search",
    "search_command",
    "search_guess",
    "setup",
    "steering",
    "token_command",
    "trained",
    "tuning",
    "unlearning",
    "verify",
}
NO_TORCH = {
    "errors",
    "jobs",
    "plan",
    "launching",
    "overrides",
    "composing",
    "language_schema",
    "schema",
    "checks",
    "config",
    "records",
    "report",
    "compare",
    "command",
    "cli",
    "__init__",
    "routes",
    "scene",
    "split",
    "published",
    "tables",
    "provenance",
    "page",
    "comparison_plots",
    "reading",
    "stacking",
    "folders",
    "hub",
    "collecting",
    "locks",
    "stopping",
    "classification_report",
    "image_checks",
    "image_schema",
    "language_checks",
    "language_report",
    "language_page",
    "steering_page",
    "language_comparison",
    "intervals",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=[p.relative_to(PACKAGE).as_posix() for p in FILES])
def test_imports_follow_the_order(path: Path) -> None:
    module = path.relative_to(PACKAGE).with_suffix("").parts[0]
    names = imported(path)
    if module in NO_TORCH:
        assert not any(name.split(".")[0] in ("torch", "torchvision") for name in names)
    if module not in TOP:
        modules = {p.stem for p in PACKAGE.glob("*.py")} | {"routing", "text"}
        inside = {n.split(".")[1] for n in names if n.startswith("gradroute.")} & modules
        assert inside <= ALLOWED[module]


def test_the_top_level_is_what_was_agreed() -> None:
    agreed = {"pyproject.toml", "conf", "gradroute", "scripts", "outputs", "tests", "README.md", "LICENSE"}
    built = {"build", "dist"}
    assert {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - built == agreed


def test_modules_stay_small() -> None:
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 250, path
