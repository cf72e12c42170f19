"""What the terminal shows of a run: the title of its numbers, whole."""

import re
from pathlib import Path

import pandas as pd
import pytest

from gradroute.comparison.tables import print_table
from gradroute.running.progress import TITLES, Progress

UNIT = "squared pixel, pixels in [-1, 1]"


def plain(printed: str) -> list[str]:
    """The lines of an output without the terminal's codes."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed).splitlines()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An output that passes for a terminal of 80 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)


def rows(metric: str) -> list[dict[str, object]]:
    groups = ("digits_0_4", "digits_5_9")
    heads = (("decoder", "all"), ("certificate", "top"))
    return [
        {"head": head, "region": region, "group": group, "metric": metric, "value": 0.25}
        for head, region in heads for group in groups
    ]  # fmt: skip


@pytest.mark.parametrize("metric", TITLES)
def test_the_headlines_title_is_on_one_line_at_80_columns(
    narrow: None, capsys: pytest.CaptureFixture[str], metric: str
) -> None:
    Progress(lambda line: None).headline(Path("outputs/run"), rows(metric), ["digits_0_4", "digits_5_9"])
    lines = plain(capsys.readouterr().out)
    assert lines[0] == TITLES[metric] and lines[-1] == "outputs/run"
    assert max(map(len, lines[1:])) <= 80 and sum("0.250" in line for line in lines) == 2


def test_so_is_a_comparisons(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    title = f"mse on the test data, in {UNIT}; mean over seeds, 95 % t-interval"
    print_table(pd.DataFrame({"head": ["decoder"], "mean": [0.25]}), title)
    lines = plain(capsys.readouterr().out)
    assert lines[0] == title and "0.2500" in "".join(lines[1:])
