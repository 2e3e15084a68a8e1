"""The scan writers and the fuzzer as fixtures, and a small scan."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


def _load(name: str) -> ModuleType:
    full_name = f"volumes_test_{name}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, Path(__file__).with_name(f"{name}.py"))
        assert spec and spec.loader
        sys.modules[full_name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[full_name]


@pytest.fixture(scope="session")
def writers() -> ModuleType:
    """scan_writers.py"""
    return _load("scan_writers")


@pytest.fixture(scope="session")
def fuzz() -> ModuleType:
    """fuzz_readers.py"""
    return _load("fuzz_readers")


@pytest.fixture
def hu(writers) -> np.ndarray:
    """A small scan (z, y, x), as `writers.ct_array` makes it."""
    return writers.ct_array()
