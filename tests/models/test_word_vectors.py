"""Word vectors: means of character vectors, offsets that start at 0, gradient through to the characters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from signllm.cra.word_codebook import WordCodebook
from signllm.models.word_vectors import WordVectors

WORDS = WordCodebook(
    codes=4, words=((0, 1), (2, 4)), frequencies=(1,) * 7, alpha=2.0, codebook="", segmentation="longest"
)
INDEX = torch.tensor([0, 1, 3, 2, 2, 2, 0, 0, 1])


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.arange(18.0).reshape(9, 2)


def test_a_word_is_the_mean_of_its_spelling(vectors: torch.Tensor) -> None:
    result = WORDS.segment(INDEX, torch.tensor([6, 3]))
    assert result.words.tolist() == [5, 3, 6, 5]
    values = WordVectors(WORDS, 2)(vectors, INDEX, result)
    run = vectors[3:6].mean(
        dim=0
    )  # three times 2: one character, and the token s0, whose vector is 0 at first
    expected = torch.stack(
        [vectors[:2].mean(0), vectors[2], run / 2, (vectors[6:8].mean(0) + vectors[8]) / 2]
    )
    torch.testing.assert_close(values, expected)


def test_everything_starts_at_0_and_moves_only_for_what_occurs(vectors: torch.Tensor) -> None:
    model = WordVectors(WORDS, 2)
    assert not any(parameter.any() for parameter in model.parameters())
    result = WORDS.segment(INDEX, torch.tensor([6, 3]))
    model(vectors.requires_grad_(), INDEX, result).sum().backward()
    assert model.characters.grad[:, 0].tolist() == [1.0, 1.0, 0.5, 1.0, 0.5]
    assert model.words.grad[:, 0].tolist() == [0.0, 2.0, 1.0]
    torch.testing.assert_close(
        vectors.grad[:, 0], torch.tensor([1 / 2, 1 / 2, 1, 1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4, 1 / 2])
    )


def test_a_character_brings_its_offset_into_every_word_once(vectors: torch.Tensor) -> None:
    result = WORDS.segment(INDEX, torch.tensor([6, 3]))
    before = WordVectors(WORDS, 2)(vectors, INDEX, result)
    model = WordVectors(WORDS, 2)
    with torch.no_grad():
        model.characters[:, 0] = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
        model.words[:, 0] = torch.tensor([128.0, 32.0, 64.0])
    moved = (model(vectors, INDEX, result) - before)[:, 0]
    torch.testing.assert_close(moved, torch.tensor([32 + 3 / 2, 8, 64 + 20 / 2, 32 + 3 / 2]))


def test_gains_tell_the_order_within_a_word() -> None:
    words = replace(WORDS, words=((0, 1), (1, 0)))
    vectors, index, counts = (
        torch.tensor([[1.0], [1.0], [5.0], [5.0], [1.0]]),
        torch.tensor([0, 0, 1, 1, 0]),
        [3, 2],
    )
    result = words.segment(index, torch.tensor(counts))
    assert result.position.tolist() == [0, 0, 1, 0, 1]
    model = WordVectors(words, 1)
    assert model(vectors, index, result).flatten().tolist() == [3.0, 3.0]
    with torch.no_grad():
        model.gains[0] = 1.0
    assert model(vectors, index, result).flatten().tolist() == [(2 + 5) / 2, (10 + 1) / 2]


def test_s0_by_itself_has_two_offsets_as_words_have() -> None:
    words = replace(WORDS, codes=2, words=(), frequencies=(1,) * 3, alpha=1.0)
    index = torch.tensor([1, 1, 1])
    result = words.segment(index, torch.tensor([3]))
    assert result.words.tolist() == [1, 2]
    model = WordVectors(words, 1)
    with torch.no_grad():
        model.characters[:, 0] = torch.tensor([1.0, 2.0, 4.0])
        model.words.fill_(8.0)
    assert model(torch.ones(3, 1), index, result)[:, 0].tolist() == [3.0, 12.0]
