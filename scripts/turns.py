"""Time steps in turn, so that a busy machine slows them alike."""

import random
import time
from collections.abc import Callable, Mapping

import torch

Step = Callable[[], object]


def clock(device: str = "cpu") -> float:
    """Return the time in seconds; that of the processor where one thread computes, which other work changes little."""
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def waited(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(steps: Mapping[str, Step], rounds: int, warm_up: int = 1, device: str = "cpu") -> dict[str, list[float]]:
    """Return the seconds of every step, once in each round, in random order, after some rounds of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + warm_up):
        for name in random.sample(list(steps), len(steps)):
            started = clock(device)
            steps[name]()
            waited(device)
            if number >= warm_up:
                seconds[name].append(clock(device) - started)
    return seconds
