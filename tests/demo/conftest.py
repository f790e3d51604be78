"""A filmed and sharded dataset of a few videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.data.shards.writing import ShardConfig, shard
from signllm.demo.studio import TABLE, StudioConfig, film

FEW = StudioConfig(train=10, dev=1, test=2)


@pytest.fixture(scope="session")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``videos``, ``truth.jsonl`` and ``shards``."""
    folder = tmp_path_factory.mktemp("filmed")
    film(folder, FEW, workers=1)
    config = ShardConfig(encode="copy", workers=1, show_progress=False)
    shard("table", folder / "videos" / TABLE, folder / "shards", config)
    return folder
