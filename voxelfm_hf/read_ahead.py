"""Work done in worker processes ahead of its consumer: bounded in memory, and a crashed worker costs one task."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import forkserver
from typing import Any

_FEWEST_FOR_PROCESSES = 8
_READER_BYTES = 3 << 30


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
    new_pool = partial(_pool, work, setup, setup_args)
    pool = new_pool(workers)
    try:
        while True:
            while not suspects and len(running) <= workers:
                try:
                    task = next(waiting)
                except StopIteration:
                    break
                running.append((task, _submit(pool, work, task)))
            if suspects:
                task = suspects.popleft()
                alone = new_pool(1)
                try:
                    yield task, _submit(alone, work, task).result()
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
                    pool = new_pool(workers)
                    continue
                running.popleft()
                yield task, result
            else:
                return
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(
    work: Callable[[Any], Any], setup: Callable[..., None] | None, setup_args: tuple, workers: int
) -> ProcessPoolExecutor:
    # A forked copy of a process with torch threads or a CUDA context can hang; copies of a server that has only
    # imported the work cannot, and they start at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([getattr(work, "func", work).__module__])
    _start_server()
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(setup, setup_args))


def _submit(pool: ProcessPoolExecutor, work: Callable[[Any], Any], task: Any) -> Future:
    """Gives a pool a task, for which it may start a worker; Ctrl-C meanwhile is answered when that is done.

    A pool that is cut off while it starts a worker does not know of it: its locks are gone when the worker asks for
    them, which ends with a traceback.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        return pool.submit(work, task)  # other threads are not interrupted; a handler not of Python cannot be put back
    pressed = False

    def remember(*_: Any) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, remember)
    try:
        future = pool.submit(work, task)
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)
    return future


def _start_server() -> None:
    """The server that workers are forked from; Ctrl-C while it imports is left to the process that started it."""
    if threading.current_thread() is not threading.main_thread():  # only there a signal can be ignored
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _start(setup: Callable[..., None] | None, setup_args: tuple) -> None:
    """What a new process does first."""
    # Ctrl-C goes to all processes of a terminal. A worker that it cut off while it hands over a result would leave the
    # others and the consumer waiting for ever; the consumer ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker waits for its next task for ever, also when nobody is left to give it one.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if setup is not None:
        setup(*setup_args)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def cores() -> int:
    """Cores that this process may use; all of the machine where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_a_core(tasks: int) -> int:
    """Worker processes for a number of tasks that need little memory: one a core, none for a handful."""
    return cores() if tasks >= _FEWEST_FOR_PROCESSES else 0


def readers_that_fit() -> int:
    """Processes that can read whole scans side by side: one a core as memory allows, about 3 GB each."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30
    return max(1, min(cores(), memory // _READER_BYTES))


def default_readers(tasks: int, *, on_gpu: bool = False) -> int:
    """Processes that read ahead of a model for a number of scans; none where starting them costs more than they save.

    Args:
        tasks: How many scans.
        on_gpu: A GPU takes scans faster than all cores read them, shared with other processes that feed one. Four keep
            a model on a CPU busy.
    """
    most = readers_that_fit() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if on_gpu else 4
    return 0 if tasks < 4 else max(1, min(most, cores() - 1, tasks // 2))
