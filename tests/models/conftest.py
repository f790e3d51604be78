"""Fixtures: a random language model on disk, and the results of the same work on one rank and on two."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import Tensor

from tests.models import on_ranks, parts
from tests.models.families import CAUSAL, ENCODER_DECODER, save_experts, save_family
from tests.shared import made_once


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts.save_language_model(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="session")
def on_one_and_two(
    llm: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return the results of one rank, and those of each of two ranks, for the same work."""

    def run(folder: Path) -> None:
        for family in (*CAUSAL, *ENCODER_DECODER):
            save_family(folder / family, family)
        save_experts(folder / "experts")
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda count: on_ranks.run(count, folder, llm), (1, 2)))

    folder = made_once(tmp_path_factory, "one-and-two-ranks", run)
    (one,), two = (on_ranks.read_results(count, folder) for count in (1, 2))
    return one, two
