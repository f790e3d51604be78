"""Files that the tests of several xdist workers read, made by the worker that needs them first."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that ``make`` has filled, once for all workers of this test run; tests only read it.

    Args:
        factory: of the temporary folders.
        name: of the folder.
        make: fills the empty folder that it is given; where it fails, the next worker tries again.
    """
    own = factory.getbasetemp()  # a worker has one below that of the run
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / f"shared-{name}"
    folder.mkdir(exist_ok=True)
    complete = folder / "COMPLETE"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder / "files", ignore_errors=True)  # of a worker that failed
            (folder / "files").mkdir()
            make(folder / "files")
            complete.touch()
    return folder / "files"
