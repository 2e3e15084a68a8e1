"""Shared fixtures: offline libraries, parity data, and real scans where the machine has them."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

PARITY = Path(__file__).parent / "data" / "parity"


@pytest.fixture(scope="session")
def parity() -> Path:
    """What the published code computes on seeded inputs (tests/data/README.md)."""
    return PARITY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with `ct/` named by VOXELFM_TEST_DATA; tests that need real scans skip without it."""
    folder = os.environ.get("VOXELFM_TEST_DATA")
    if not folder or not (Path(folder) / "ct").is_dir():
        pytest.skip("set VOXELFM_TEST_DATA to a folder with ct/ to run on real scans")
    return Path(folder)


@pytest.fixture(scope="session")
def process_server() -> None:
    """For tests whose product code starts processes: they are forked from a server that has imported once."""
    from tests.two_processes import start_process_server  # imports torch

    start_process_server()
