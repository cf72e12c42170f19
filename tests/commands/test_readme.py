"""The README's library examples run as printed."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[2] for block in BLOCKS])
def test_the_example_runs(block: str) -> None:
    exec(block, {})  # what it promises is tested elsewhere; this is that it runs as printed


def test_there_are_examples_of_every_kind() -> None:
    assert len(BLOCKS) == 4 and all(word in TEXT for word in ("resnet18", "TransformerEncoder", "ParameterRouter"))
