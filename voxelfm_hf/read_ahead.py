"""Work done in worker processes ahead of its consumer: bounded in memory, and a crashed worker costs one task."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any


class WorkerCrash(Exception):
    """The process that worked on a task ended abruptly (out of memory, or a crash in a native library)."""


def read_ahead(
    work: Callable[[Any], Any],
    tasks: Iterable[Any],
    *,
    workers: int,
    setup: Callable[..., None] | None = None,
    setup_args: tuple = (),
) -> Iterator[tuple[Any, Any]]:
    """Runs `work(task)` for every task, `workers` + 1 tasks ahead of the consumer at most.

    Args:
        work: A module-level function; its results travel through a pipe.
        tasks: What to work on.
        workers: Processes to start; 0 does the work in this process.
        setup: Called once in every process that works, with `setup_args`; None where nothing has to be set up.
        setup_args: Arguments of `setup`.

    Yields:
        (task, result) in the order of the tasks; the result is a `WorkerCrash` where the process died.
    """
    if workers < 1:
        if setup is not None:
            setup(*setup_args)
        yield from ((task, work(task)) for task in tasks)
        return
    waiting = iter(tasks)
    running: deque[tuple[Any, Future]] = deque()
    # Tasks that were running when a process died: tried again one by one, so that the culprit is known.
    suspects: deque[Any] = deque()
    pool = _pool(workers, setup, setup_args)
    try:
        while True:
            while not suspects and len(running) <= workers:
                try:
                    task = next(waiting)
                except StopIteration:
                    break
                running.append((task, pool.submit(work, task)))
            if suspects:
                task = suspects.popleft()
                alone = _pool(1, setup, setup_args)
                try:
                    yield task, alone.submit(work, task).result()
                except BrokenProcessPool:
                    yield task, WorkerCrash()
                finally:
                    alone.shutdown(cancel_futures=True)
            elif running:
                task, future = running[0]
                try:
                    result = future.result()
                except BrokenProcessPool:
                    suspects.extend(task for task, _ in running)
                    running.clear()
                    pool.shutdown(cancel_futures=True)
                    pool = _pool(workers, setup, setup_args)
                    continue
                running.popleft()
                yield task, result
            else:
                return
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(workers: int, setup: Callable[..., None] | None, setup_args: tuple) -> ProcessPoolExecutor:
    # spawn: a forked copy of a process with torch threads or a CUDA context can hang
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=setup, initargs=setup_args)


def default_workers(tasks: int) -> int:
    """Worker processes for a number of tasks on this machine; none where starting them costs more than they save."""
    return 0 if tasks < 4 else max(1, min(4, len(os.sched_getaffinity(0)) - 1, tasks // 2))
