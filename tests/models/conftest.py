"""A random language model on disk, and one run of everything on one rank and on two."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import Tensor

from tests.models import on_ranks, parts
from tests.models.families import CAUSAL, ENCODER_DECODER, save_experts, save_family


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts.save_language_model(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="session")
def on_one_and_two(
    llm: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """What one rank found, and what each of two ranks found, doing the same work."""
    folder = tmp_path_factory.mktemp("ranks")
    for family in (*CAUSAL, *ENCODER_DECODER):
        save_family(folder / family, family)
    save_experts(folder / "experts")
    with ThreadPoolExecutor() as pool:
        one, two = pool.map(lambda count: on_ranks.run(count, folder, llm), (1, 2))
    return one[0], two
