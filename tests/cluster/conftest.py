"""A Slurm of our own, started once for the tests that want one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import submitit

from signllm.cluster import launch
from tests import warm
from tests.cluster.slurm import Slurm, why_not


@pytest.fixture(scope="session")
def started_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := why_not():
        pytest.skip(reason)
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
    assert not slurm.processes()


@pytest.fixture
def slurm(started_slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Two idle nodes of two processors; commands of the test find them."""
    for name, value in started_slurm.environment.items():
        monkeypatch.setenv(name, value)
    started_slurm.cancel()
    return started_slurm


@pytest.fixture
def forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ranks of jobs start as forks: neither an interpreter's start nor its imports are tested."""
    monkeypatch.setattr(launch, "PYTHON", launch.PYTHON.replace(sys.executable, warm.python()))
    monkeypatch.setattr(sys, "executable", warm.python())


@pytest.fixture(autouse=True)
def no_wait_for_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let submitit wait 1 s, not 15 s, for the result of a killed job to appear on a network disk."""
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 1)
