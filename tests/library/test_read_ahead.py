"""Work in processes: in order, a crash costs one task, and none outlives the one that gave it its tasks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from voxelfm_hf.read_ahead import WorkerCrash, cores, default_readers, read_ahead, readers_that_fit, worker_a_core

PARENT = """
import os, signal
from tests.library.test_read_ahead import double
from voxelfm_hf.read_ahead import read_ahead
if __name__ == "__main__":
    for task, result in read_ahead(double, range(100), workers=2):
        if task == 1:
            os.kill(os.getpid(), signal.SIGKILL)
"""

INTERRUPTED = """
import signal
from multiprocessing import forkserver
from tests.library.test_read_ahead import double
from voxelfm_hf.read_ahead import read_ahead
connect = forkserver.connect_to_new_process
def interrupted(*arguments):
    ends = connect(*arguments)
    signal.raise_signal(signal.SIGINT)
    return ends
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    forkserver.connect_to_new_process = interrupted
    try:
        list(read_ahead(double, range(9), workers=2))
    except KeyboardInterrupt:
        print("interrupted")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def double(task):
    if task == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "ctrl-c":
        os.kill(os.getpid(), signal.SIGINT)
    return task * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_read_ahead_keeps_the_order(process_server, workers):
    pairs = list(read_ahead(double, range(9), workers=workers))
    assert pairs == [(n, 2 * n) for n in range(9)]


def test_a_crashed_worker_costs_one_task(process_server):
    tasks = ["a", "b", "crash", "c", "d", "e"]
    results = dict(read_ahead(double, tasks, workers=2))
    assert isinstance(results.pop("crash"), WorkerCrash)
    assert results == {name: name * 2 for name in "abcde"}


def test_processes_where_the_system_does_not_tell_which_cores_are_free(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5}, raising=False)
    assert cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert (cores(), default_readers(3), default_readers(100)) == (3, 0, 2)
    assert (worker_a_core(7), worker_a_core(8)) == (0, 3)


@pytest.mark.parametrize(("gigabytes", "processes", "readers"), [(128, 1, 15), (24, 1, 8), (128, 4, 4), (2, 8, 1)])
def test_a_gpu_is_fed_by_all_cores_as_memory_allows(monkeypatch, gigabytes, processes, readers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gigabytes << 18}.__getitem__)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_readers(100, on_gpu=True) == readers
    assert default_readers(100) == 4
    assert readers_that_fit() == max(1, min(16, gigabytes // 3))


def test_workers_leave_ctrl_c_to_the_one_that_gave_them_their_tasks(process_server):
    tasks = ["a", "ctrl-c", "b", "ctrl-c", "c"]  # a terminal sends it to every process
    assert list(read_ahead(double, tasks, workers=2)) == [(name, name * 2) for name in tasks]


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess:
    """The end of a script and of all its processes: whoever is left holds the pipes open."""
    (folder / "script.py").write_text(text)
    return subprocess.run(
        [sys.executable, folder / "script.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=60,
    )


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path):
    assert run_script(tmp_path, PARENT).returncode == -signal.SIGKILL


def test_ctrl_c_while_workers_start_leaves_none_without_its_locks(tmp_path: Path):
    ended = run_script(tmp_path, INTERRUPTED)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("interrupted\n", "", 0)
