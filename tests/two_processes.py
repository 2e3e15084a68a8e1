"""Work done by two gloo processes on CPU, as `accelerate launch` would start them."""

import multiprocessing
import os
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver

import torch
import torch.multiprocessing as mp

# Imported once, by the server that processes of tests are forked from.
PRELOADED = [
    "pytest",
    "nibabel",
    "peft",
    "voxelfm_hf.data.prepare",
    "voxelfm_hf.features",
    "voxelfm_hf.training.finetune.loop",
    "voxelfm_hf.training.pretrain.loop",
]


def start_process_server() -> None:
    """Starts the server that new processes are forked from, where there is none yet."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def in_two_processes(work: Callable[..., None], *arguments: object, **options: object) -> None:
    """Runs `work(*arguments, **options)`, a function of a module, in two new processes; fails where one of them fails.

    They are forked from a server that has computed nothing: a fork of a process whose threads have computed can hang.
    """
    start_process_server()
    mp.start_processes(_run_rank, args=(free_port(), work, arguments, options), nprocs=2, start_method="forkserver")


def free_port() -> int:
    """A port nobody uses, below those the system gives to connections: one of these may be taken before it is used."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def _run_rank(rank: int, port: int, work: Callable[..., None], arguments: tuple, options: dict) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    work(*arguments, **options)
    # Everything is written; threads of process groups that still run could abort the process while it ends.
    os._exit(0)
