"""Pages are complete, self-contained and escaped; the localization score."""

import re
import shutil
from pathlib import Path

import pytest
from robust import reseal

from gradroute.config.compose import configuration
from gradroute.errors import UserError
from gradroute.reporting.page import Page, Table
from gradroute.reporting.run_page import run_page, verdict
from gradroute.routing.routes import Route, owned
from gradroute.tasks.base import create
from gradroute.tasks.evaluation import Head, localization
from gradroute.tasks.images import ImageTask

EVIL = "<script>alert('x')</script>"


def test_everything_is_escaped() -> None:
    table = Table(EVIL, [EVIL], [[EVIL], [0.5]], EVIL)
    html = Page(EVIL, [EVIL], [table], [(EVIL, b"png")], [(EVIL, EVIL)]).html()
    assert EVIL not in html and html.count("&lt;script&gt;") >= 9
    assert len(re.findall("<script>", html)) == 1 and "0.5000" in html


def test_a_runs_page_has_its_parts_and_needs_no_network(smoke: Path, tmp_path: Path) -> None:
    html = (smoke / "report.html").read_text()
    assert html.count("<img") == 6 and "gradroute-run rerun=" in html and "batch_size" in html
    assert "localization" in html and "published 0.32 ± 0.02" in html
    assert not re.search(r"(src|href)=.(?!data:)", html) and len(html) < 2_000_000
    shutil.copytree(smoke, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text() + f"# {EVIL}")
    with pytest.raises(UserError, match=r"config\.yaml: damaged"):
        run_page(tmp_path / "run")
    reseal(tmp_path / "run")
    assert EVIL not in run_page(tmp_path / "run").read_text()


@pytest.mark.parametrize(
    ("advantages", "baseline", "score"),
    [
        ([0.3, 0.0], 0.4, 1.0),
        ([0.3, -0.1], 0.4, 1.0),  # worse than the mean image counts as holding nothing
        ([0.3, 0.3], 0.4, 0.0),
        ([0.1, 0.4], 0.5, 0.75),
        ([0.4, 0.0, 0.2], 0.5, 0.75),
        ([0.01, 0.0], 0.4, 0.0),  # no region holds anything: a collapse is not a split
    ],
)
def test_localization_is_bounded_and_means_what_it_says(advantages: list[float], baseline: float, score: float) -> None:
    assert localization(advantages, baseline) == pytest.approx(score)


@pytest.mark.parametrize(
    ("advantages", "own", "score"),
    [([0.3, 0.1], 0, 2 / 3), ([0.1, 0.3], 0, 0.0), ([0.3, 0.0], 1, 0.0), ([0.3, 0.3, 0.0], 0, 0.5)],
)
def test_a_group_that_another_region_holds_is_not_localized(advantages: list[float], own: int, score: float) -> None:
    assert localization(advantages, 0.4, own) == pytest.approx(score)


def test_a_groups_own_region_is_the_one_of_the_highest_weight() -> None:
    routes = {("a", "x"): Route(0.0), ("b", "y"): Route(-1.0), ("b", "z"): Route(0.5)}
    assert owned(routes, "a", ["x", "y"]) == 1 and owned(routes, "b", ["z", "y"]) == 0
    assert owned(routes, "c", ["x", "y"]) is None and owned(routes, "a", ["x", "y", "z"]) is None


def test_a_region_that_holds_both_groups_localizes_only_its_own(tmp_path: Path) -> None:
    sizes = ["trainer=smoke", "trainer.train_limit=256", "trainer.test_limit=64", "model.hidden=[32]"]
    task = create(configuration([*sizes, f"output_dir={tmp_path}"]))
    assert isinstance(task, ImageTask)
    errors = {"top": 0.0, "bottom": 1000.0}  # of every group
    rows = [
        (group, Head("certificate", region), "mse", error)
        for group in task.names for region, error in errors.items()
    ]  # fmt: skip
    scores = {group: value for group, *_, value in task.scores(rows)}
    assert scores == {"digits_0_4": 1.0, "digits_5_9": 0.0, "all": 0.0}


def test_the_verdict_uses_words() -> None:
    rows = [
        {"group": g, "metric": "localization", "value": 0.9, "head": "score", "region": "all"} for g in ("a", "all")
    ]
    assert verdict(rows, "mine") == [
        "The groups are split cleanly: localization a 0.90 "
        "(0: the other regions hold as much of a group as its own; 1: they hold nothing of it)."
    ]
