"""A fine-tuned run and a folder of shards that all tests of evaluation share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.inference import trained


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``run``, ``shards``, ``videos`` and ``llm``; tests must not write to it."""
    folder = tmp_path_factory.mktemp("trained")
    trained.write_shards(folder)
    trained.write_run(folder / "run", trained.save_sensitive_language_model(folder / "llm"))
    return folder


@pytest.fixture
def run(trained_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may write to."""
    return Path(shutil.copytree(trained_folder / "run", tmp_path / "run"))


@pytest.fixture
def shards(trained_folder: Path) -> Path:
    """The shards, with the single split ``test``."""
    return trained_folder / "shards"
