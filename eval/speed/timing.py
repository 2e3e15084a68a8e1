"""Ratios of running times within one process, and functions run in a process of their own."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor

import torch


def interleaved_seconds(
    actions: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: bool = True
) -> dict[str, float]:
    """Median wall-clock seconds of each action; they take turns, so that other load on the machine falls on all.

    Work that an action leaves on a GPU is waited for and counted.

    Args:
        actions: What to time, by name.
        rounds: Counted turns, at least 1.
        warm_up: Begin with a turn that is not counted and pays for allocation and caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + warm_up):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            finish_gpu_work()
            if turn or not warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def finish_gpu_work() -> None:
    """Waits until a GPU has done what it was given; without one, nothing."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_fresh_process(function: Callable, *arguments):
    """The result of a module-level function, computed in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
