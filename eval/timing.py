"""Ratios of running times within one process, and the peak memory of a process of its own."""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def interleaved_seconds(
    actions: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: bool = True
) -> dict[str, float]:
    """Median wall-clock seconds of each action; they take turns, so that other load on the machine falls on all.

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
            if turn or not warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory_bytes() -> int:
    """The most memory this process has held at once (resident set)."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Unlike ru_maxrss, it does not start at what the parent process held.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found.group(1)) * 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_fresh_process(function: Callable, *arguments):
    """The result of a module-level function, computed in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
