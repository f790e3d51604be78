"""A pretrained and composed run, made once by the real stages, for the tests of stages and command line.

The stages are imported when the run is made: tests/kernels also runs where DeepSpeed is not installed.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from signllm import storage
from signllm.data.loading.mixture import open_mixture
from tests.clock import Clock

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is first imported, by whatever test


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Let waits for storage take no time; what they say is not held back by other tests."""
    clock, announcer = Clock(), storage._Announcer()
    monkeypatch.setattr(storage, "time", clock)
    monkeypatch.setattr(storage, "_announcer", announcer)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", f"test-{uuid.uuid4()}")
    yield clock
    clock.sleep(2 * storage.ANNOUNCED_EVERY_S)
    announcer.release_when_due()


@pytest.fixture(scope="session")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``shards``, ``llm``, and ``pretrain``: the run after stages 1 and 2."""
    from signllm.stages.compose import compose
    from signllm.stages.pretrain import pretrain
    from tests.models import parts
    from tests.stages import path

    folder = tmp_path_factory.mktemp("path")
    shards = path.write_videos(folder)
    parts.save_language_model(folder / "llm")
    pretrain(path.PRETRAIN, run=folder / "pretrain", dataset=open_mixture(shards))
    compose(folder / "pretrain", open_mixture(shards), path.COMPOSE)
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, composed: Path) -> None:
    """A recipe ``tiny``: the three stages as the tests of the stages configure them."""
    from signllm import recipes
    from tests.stages import path

    made = recipes.Recipe(
        pretrain=path.PRETRAIN, compose=path.COMPOSE, finetune=path.finetune_config(composed / "llm")
    )
    monkeypatch.setitem(recipes.RECIPES, "tiny", lambda: made)
