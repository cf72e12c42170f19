"""Whether a training is made by deterministic algorithms, so that a rerun on the same device agrees to the bit.

On a CPU it always is. On a GPU torch sums in any order unless it is told otherwise, and some operations have no
deterministic algorithm.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

COST = 1.1  # the most that deterministic algorithms may take, as a share of the time without them
ROUNDS = 5
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it when it starts


def prepare() -> None:
    """Have cuBLAS sum in one order from its start on; call it before the first use of a GPU."""
    os.environ.setdefault(WORKSPACE, ":4096:8")


@contextmanager
def exactly(on: bool) -> Iterator[None]:
    """Use deterministic algorithms inside the block, if asked."""
    if not on:  # to set them imports torch's compiler
        yield
        return
    before, told = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # it only shows errors, and costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=told)
        settings.fill_uninitialized_memory = filled


def _seconds(work: Callable[[], object], finish: Callable[[], object]) -> float:
    finish()
    began = time.perf_counter()
    work()
    finish()
    return time.perf_counter() - began


def affordable(work: Callable[[], object], finish: Callable[[], object]) -> tuple[bool, str]:
    """Return whether `work` has deterministic algorithms that cost at most `COST`, and in words what was found.

    Args:
        work: what is asked about, such as an update's gradients; it is done `2 * (ROUNDS + 1)` times.
        finish: waits for the device.
    """
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(ROUNDS + 1):
        for on in (False, True):
            try:
                with exactly(on), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    seconds = _seconds(work, finish)
            except RuntimeError as error:
                if not on:
                    raise
                return False, f"torch has no deterministic algorithm for it ({str(error).splitlines()[0]})"
            if number:  # the first one makes what is made once
                times[on].append(seconds)
    cost = min(times[True]) / max(min(times[False]), 1e-9)
    return cost <= COST, f"deterministic algorithms take {cost:.2f} of the time without them"
