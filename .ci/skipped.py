"""Pytest plugin: the first run of the tests notes what was skipped in the file that SKIPPED names.

The second run, with more packages, makes these, the slow tests, and CI's own checks.
"""

import os
from pathlib import Path

import pytest

NOTES = Path(os.environ["SKIPPED"])
AGAIN = set(NOTES.read_text().splitlines()) if NOTES.exists() else None  # of the first run; None in the first run
_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:  # a whole file
        _skipped.append(report.nodeid)


def _again(item: pytest.Item) -> bool:
    if AGAIN is None or item.get_closest_marker("slow") or not item.nodeid.startswith("tests/"):
        return True
    return item.nodeid in AGAIN or item.nodeid.partition("::")[0] in AGAIN


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left = [item for item in items if not _again(item)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if _again(item)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ and AGAIN is None:  # the leading process hears of every test
        NOTES.write_text("".join(f"{name}\n" for name in dict.fromkeys(_skipped)))
