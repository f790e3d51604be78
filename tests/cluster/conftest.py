"""A Slurm of our own, started once for the tests that want one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
