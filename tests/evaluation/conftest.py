"""One fine-tuned run and one folder of shards for all tests of evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.evaluation import trained


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``run``, ``shards`` and ``videos``; to be copied from, not written to."""
    folder = tmp_path_factory.mktemp("made")
    trained.write_shards(folder)
    trained.write_run(folder / "run", trained.loud_language_model(folder / "llm"))
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may write to."""
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


@pytest.fixture
def shards(made: Path) -> Path:
    """The shards, one split ``test``."""
    return made / "shards"
