"""What the READMEs print is true: their Python runs as printed, and the list of keys is whole."""

import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from gradroute.config import schema
from gradroute.config.components import STEPS
from gradroute.config.doors import DOORS
from gradroute.config.targets import locate

ROOT = Path(__file__).parent.parent.parent
KEYS = (ROOT / "conf" / "README.md").read_text()
GROUPS = {path.parent.name: path.parent for path in (ROOT / "conf").glob("*/*.yaml")}
BLOCKS = {
    f"{name}:{number}": block
    for name in ("README.md", "gradroute/README.md")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL))
}
RUNS = {name: block for name, block in BLOCKS.items() if not block.startswith("# ")}  # the others are files to write


@pytest.mark.parametrize(
    "name", [name for name, block in RUNS.items() if "gradroute.run(" not in block]
)  # see test_notebook.py
def test_the_python_of_the_readmes_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(RUNS[name], {})  # what it promises is tested elsewhere; this is that it runs as printed


def test_there_are_examples_of_every_kind() -> None:
    text = "".join(RUNS.values())
    assert all(word in text for word in ("gradroute.run", "resnet18", "TransformerEncoder", "ParameterRouter"))


@pytest.mark.parametrize("group", sorted(set(GROUPS) - {"experiment", "presets", "trainer"}))
def test_every_option_of_a_group_is_described(group: str) -> None:
    names = [path.stem for path in GROUPS[group].glob("*.yaml") if not path.name.startswith("_")]
    missing = [name for name in names if f"`{name}`" not in KEYS and f"={name}" not in KEYS]
    assert not missing


def component_targets() -> set[str]:
    """Everything that a configuration of ours can name."""
    found = {target for target, _ in STEPS.values()}
    for path in (ROOT / "conf").rglob("*.yaml"):
        found |= set(re.findall(r"_target_: (gradroute\.[\w.]+)", path.read_text()))
    return {target for target in found if not target.endswith("Noted")}


@pytest.mark.parametrize("target", sorted(component_targets()))
def test_every_argument_of_a_component_is_described(target: str) -> None:
    supplied = {name for door in DOORS.values() for name in door.supplied}
    named = set(inspect.signature(locate(target, "target")).parameters) - supplied
    missing = [name for name in named if f"`{name}`" not in KEYS and not re.search(rf"\b{name}:", KEYS)]
    assert not missing


def described(owner: type, at: str = "") -> list[str]:
    """The keys of a part of the schema that the list does not have."""
    missing = []
    for field in fields(owner):
        kind = get_type_hints(owner)[field.name]
        inner = [k for k in (kind, *get_args(kind)) if isinstance(k, type) and is_dataclass(k)]
        if inner:
            missing += described(inner[0], f"{field.name}.")
        elif not any(f"`{name}`" in KEYS for name in (field.name, f"{at}{field.name}")):
            missing.append(f"{at}{field.name}")
    return missing


def test_every_key_of_the_schema_is_described() -> None:
    assert not described(schema.Config)


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 12 * 1024


def test_every_link_of_a_readme_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *(p for folder in PAGES for p in (ROOT / folder).rglob("README.md"))]
    broken = []
    for page in pages:
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            target = (page.parent / path) if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken


PAGES = ("conf", "gradroute", "outputs", "scripts", "tests")


def test_every_script_and_module_that_a_readme_names_exists() -> None:
    pages = [ROOT / "README.md", *(p for folder in PAGES for p in (ROOT / folder).rglob("README.md"))]
    named = [(page, name) for page in pages for name in re.findall(r"`([\w./-]+\.(?:py|sh))`", page.read_text())]
    missing = [f"{page}: {name}" for page, name in named if not any((p / name).exists() for p in (page.parent, ROOT))]
    assert len(named) > 50 and not missing


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a Markdown file."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_a_model_of_the_front_page_fits_the_data_it_is_shown_with() -> None:
    source = next(block for block in BLOCKS.values() if "class ConvAutoencoder" in block)
    scope: dict[str, type[nn.Module]] = {}
    exec(source, scope)
    images = torch.zeros(2, 1, 28, 28)
    assert scope["ConvAutoencoder"]([28, 28])(images).shape == images.shape
