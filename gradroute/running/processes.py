"""Make calls in processes of their own, such as the plots of many runs."""

import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from gradroute.records.provenance import cores

LEAST = 4  # calls; to start processes takes as long as the plots of one or two runs
Key = TypeVar("Key")
Call = Callable[[], object]


def worth(calls: int) -> bool:
    """Return whether so many calls take less time in several processes."""
    return calls >= LEAST and cores() > 1


def errors(calls: Mapping[Key, Call]) -> dict[Key, Exception]:
    """Make calls in as many processes as there are cores; return the errors of those that failed.

    A call whose process is lost is made here.
    """
    with ProcessPoolExecutor(min(len(calls), cores()), get_context("spawn"), _left_to_the_parent) as pool:
        made = {key: pool.submit(call) for key, call in calls.items()}
        try:
            found = {key: future.exception() for key, future in made.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    failed: dict[Key, Exception] = {}
    for key, error in found.items():
        if isinstance(error, BrokenProcessPool):
            try:
                calls[key]()
            except Exception as own:
                failed[key] = own
        elif isinstance(error, Exception):
            failed[key] = error
    return failed


def _left_to_the_parent() -> None:
    """Ignore an interrupt from the terminal, which comes to all processes: the parent ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
