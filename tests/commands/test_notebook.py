"""The notebook of the front page, executed cell by cell in a kernel of its own."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent.parent


def executed(cells: list[str], folder: Path) -> list[str]:
    """The text that each cell of a new notebook shows. Raises: CellExecutionError."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    here = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=here).execute()
    shown = []
    for cell in notebook.cells:
        outputs = [o.get("text", "") + str(o.get("data", {}).get("text/html", "")) for o in cell.outputs]
        shown.append("".join(outputs))
    return shown


@pytest.mark.slow
def test_the_notebook_of_the_front_page_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "gradroute.run(" in block]
    again = "again = gradroute.open_run(run.path)\nagain"
    equal = "print(again.metrics.equals(run.metrics), type(again.model).__name__, list(again.certificates))"
    first, table, last = executed([block, again, equal], tmp_path)
    assert "digits_0_4" in first and "report.html" in first
    assert "<table" in table and "certificate" in table
    assert last.strip() == "True Autoencoder ['top', 'bottom']"
