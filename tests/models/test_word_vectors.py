"""Word vectors: means of character vectors, offsets that start at 0, gradient through to the characters."""

from __future__ import annotations

import pytest
import torch

from signllm.cra.word_codebook import WordCodebook
from signllm.models.word_vectors import WordVectors

WORDS = WordCodebook(
    codes=4, words=((0, 1), (2, 4)), frequencies=(1,) * 7, alpha=2.0, codebook="", segmentation="longest"
)


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.arange(18.0).reshape(9, 2)


def test_a_word_is_the_mean_of_its_spelling(vectors: torch.Tensor) -> None:
    found = WORDS.segment(torch.tensor([0, 1, 3, 2, 2, 2, 0, 0, 1]), torch.tensor([6, 3]))
    assert found.words.tolist() == [5, 3, 6, 5]
    values = WordVectors(WORDS, 2)(vectors, found)
    run = vectors[3:6].mean(
        dim=0
    )  # three times 2: one character, and the token s0, whose vector is 0 at first
    expected = torch.stack(
        [vectors[:2].mean(0), vectors[2], run / 2, (vectors[6:8].mean(0) + vectors[8]) / 2]
    )
    torch.testing.assert_close(values, expected)


def test_offsets_start_at_0_and_move_only_for_words_that_occur(vectors: torch.Tensor) -> None:
    model = WordVectors(WORDS, 2)
    assert not model.offsets.weight.any()
    assert not model.slow_down.any()
    found = WORDS.segment(torch.tensor([0, 1, 3, 2, 2, 2, 0, 0, 1]), torch.tensor([6, 3]))
    model(vectors.requires_grad_(), found).sum().backward()
    assert model.offsets.weight.grad[:, 0].tolist() == [0, 0, 0, 1, 0, 2, 1]
    torch.testing.assert_close(model.slow_down.grad, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(
        vectors.grad[:, 0], torch.tensor([1 / 2, 1 / 2, 1, 1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4, 1 / 2])
    )
