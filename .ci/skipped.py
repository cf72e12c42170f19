"""Pytest plugin: list the tests that were skipped in the file that SKIPPED names, one on each line.

CI runs these again with more packages, and no others.
"""

import os
from pathlib import Path

import pytest

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:  # a whole file
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:  # the leading process hears of every test
        Path(os.environ["SKIPPED"]).write_text("".join(f"{name}\n" for name in dict.fromkeys(_skipped)))
