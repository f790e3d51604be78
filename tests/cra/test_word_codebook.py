"""The word codebook: its files, its segmentation as tensors, and files that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from signllm.cra.repeats import collapse_repeats
from signllm.cra.word_codebook import WordCodebook, fingerprint
from signllm.errors import UsageError

CODES, SLOW = 4, 4
WORDS = WordCodebook(
    codes=CODES,
    words=((0, 1), (2, SLOW), (1, 2, 3)),
    merges=(((0,), (1,)), ((2,), (3,)), ((2,), (SLOW,)), ((1,), (2, 3))),
    frequencies=(3, 1, 4, 1, 5, 9, 2, 6),
    alpha=2.0,
    codebook="0123456789abcdef",
    curve=({"size": 0, "entropy": 1.5, "marginal_utility": None, "chosen": False},),
    config={"size": 3},
)
SEQUENCES = st.lists(st.lists(st.integers(0, CODES - 1), max_size=12), min_size=1, max_size=5)


def packed(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([c for s in sequences for c in s], dtype=torch.int64), torch.tensor(
        [len(s) for s in sequences]
    )


def test_ids_and_spelling() -> None:
    assert (WORDS.slow_down, WORDS.size) == (4, 8)
    assert [WORDS.spell(word) for word in range(8)] == [(0,), (1,), (2,), (3,), (4,), *WORDS.words]
    for word in (-1, 8):
        with pytest.raises(ValueError, match="0 to 7"):
            WORDS.spell(word)


def test_a_batch_by_hand() -> None:
    """0 1 | 2 2 2 (held: 2 s₀) | 3 and, in a second video, 3 3 | 3 is one run of three: 3 s₀, two words."""
    result = WORDS.segment(*packed([[0, 1, 2, 2, 2, 3], [3, 3, 3]]))
    assert result.words.tolist() == [5, 6, 3, 3, SLOW]
    assert result.counts.tolist() == [3, 2]
    assert result.slot.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 3]
    assert result.weight.tolist() == pytest.approx(
        [1 / 2, 1 / 2, 1 / 6, 1 / 6, 1 / 6, 1, 1 / 3, 1 / 3, 1 / 3]
    )
    assert result.slow_weight.tolist() == [0, 0.5, 0, 0, 1]


@settings(max_examples=100, deadline=None)
@given(SEQUENCES, st.sampled_from([None, 1.0, 2.0]), st.sampled_from(["viterbi", "longest", "bpe"]))
def test_laws_of_a_segmentation(sequences: list[list[int]], alpha: float | None, method: Any) -> None:
    words = replace(WORDS, alpha=alpha, segmentation=method)
    characters, counts = packed(sequences)
    result = words.segment(characters, counts)
    short = collapse_repeats(characters.numpy(), counts.numpy(), slow_down=SLOW, alpha=alpha)
    spelt = [character for word in result.words.tolist() for character in words.spell(word)]
    assert spelt == short.characters.tolist()
    assert int(result.counts.sum()) == len(result.words)
    # weights of a word's characters, with s₀'s, are a mean
    shares = result.slow_weight.index_add(0, result.slot, result.weight)
    torch.testing.assert_close(shares, torch.ones_like(shares))
    # slots never leave their video
    video_of_character = torch.arange(len(counts)).repeat_interleave(counts)
    video_of_word = torch.arange(len(counts)).repeat_interleave(result.counts)
    assert torch.equal(video_of_word[result.slot], video_of_character)
    # a batch is its videos
    alone = [words.segment(*packed([s])).words.tolist() for s in sequences]
    assert [part.tolist() for part in result.words.split(result.counts.tolist())] == alone


def test_the_mean_of_a_word_is_over_its_spelling() -> None:
    vectors = torch.randn(6, 3)
    result = WORDS.segment(*packed([[0, 1, 2, 2, 2, 3]]))
    means = torch.zeros(3, 3).index_add(0, result.slot, result.weight[:, None] * vectors)
    torch.testing.assert_close(means[0], vectors[:2].mean(dim=0))
    torch.testing.assert_close(means[1], vectors[2:5].mean(dim=0) / 2)  # s₀ is the other half
    torch.testing.assert_close(means[2], vectors[5])


def test_a_character_of_another_codebook_is_refused() -> None:
    with pytest.raises(UsageError, match="characters 0 to 4"):
        WORDS.segment(torch.tensor([0, 4]), torch.tensor([2]))
    with pytest.raises(ValueError, match="add up to 3"):
        WORDS.segment(torch.tensor([0, 1]), torch.tensor([3]))


def test_files_come_back_as_they_went(tmp_path: Path) -> None:
    WORDS.save(tmp_path / "run")
    assert WordCodebook.load(tmp_path / "run") == WORDS
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"words.json", "words.safetensors"}
    content = json.loads((tmp_path / "run" / "words.json").read_text())
    assert content["words"] == [[0, 1], [2, 4], [1, 2, 3]]
    assert content["curve"][0]["entropy"] == 1.5
    each = replace(WORDS, alpha=None, words=(), merges=(), frequencies=(1,) * 5)
    each.save(tmp_path / "run")
    assert WordCodebook.load(tmp_path / "run") == each


def test_byte_pair_order_comes_back_and_files_without_it_are_read(tmp_path: Path) -> None:
    ordered = replace(WORDS, segmentation="bpe")
    ordered.save(tmp_path)
    again = WordCodebook.load(tmp_path)
    assert asdict(again) == asdict(ordered)
    assert again.segment(*packed([[2, 3, 1, 2, 3]])).words.tolist() == [2, 3, 7]
    with pytest.raises(ValueError, match="no merges"):
        replace(ordered, merges=())
    edit(lambda c: c.update(segmentation="viterbi") or c.pop("merges"))(tmp_path)
    assert WordCodebook.load(tmp_path) == replace(WORDS, merges=())


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        content = json.loads((run / "words.json").read_text())
        change(content)
        (run / "words.json").write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "words.json").unlink(), "missing"),
        (lambda run: (run / "words.safetensors").unlink(), "missing"),
        (lambda run: (run / "words.json").write_text('{"version": 1, "wo'), "cannot be read"),
        (lambda run: (run / "words.json").write_text("[]"), "version"),
        (lambda run: (run / "words.safetensors").write_bytes(b"x" * 40), "cannot be read"),
        (edit(lambda c: c.update(version=2)), "version"),
        (edit(lambda c: c.pop("codes")), "damaged"),
        (edit(lambda c: c.update(codes="many")), "damaged"),
        (edit(lambda c: c["words"].pop()), "damaged"),
        (edit(lambda c: c["words"].__setitem__(0, [1, 0])), "different words"),
        (edit(lambda c: c["words"].__setitem__(0, [0, 9])), "damaged"),
        (edit(lambda c: c["words"].__setitem__(0, c["words"][2])), "twice"),
        (edit(lambda c: c["frequencies"].__setitem__(0, 7)), "different words"),
        (edit(lambda c: c.update(segmentation="bpe") or c["merges"].pop(0)), "no merge makes"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    WORDS.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UsageError, match=message) as refused:
        WordCodebook.load(tmp_path)
    assert "signllm compose" in str(refused.value)


def test_a_fingerprint_is_of_values_and_shape() -> None:
    codebook = torch.randn(6, 4)
    name = fingerprint(codebook)
    assert len(name) == 16
    assert int(name, 16) >= 0
    assert fingerprint(codebook.clone().requires_grad_()) == name
    assert fingerprint(codebook.T.contiguous().T) == name
    changed = codebook.clone()
    changed[5, 3] += 1e-6
    assert (
        len({name, fingerprint(changed), fingerprint(codebook.reshape(4, 6)), fingerprint(codebook[:5])}) == 4
    )
