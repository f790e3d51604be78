"""Composition: planted words are composed, the choice is recorded, order has no effect, errors are named."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest
import torch

from signllm.cra.composition import WordsConfig, compose_words
from signllm.cra.transport import ChooseBy, Drop, TransportConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.errors import UsageError

CODES = 64
SIGNS = tuple(tuple(int(c) for c in np.random.default_rng(k).permutation(CODES)[:4]) for k in range(30))

DROPPED = TransportConfig(drop="always")


def videos(n: int = 300, seed: int = 0) -> list[list[int]]:
    """Return sentences of planted signs, in which each character lasts one or two clips."""
    rng = np.random.default_rng(seed)
    return [
        [c for s in rng.integers(0, len(SIGNS), 6) for c in SIGNS[s] for _ in range(rng.integers(1, 3))]
        for _ in range(n)
    ]


def compose(sequences: list[list[int]], **settings: Any) -> WordCodebook:
    characters = np.array([c for s in sequences for c in s], dtype=np.int64)
    counts = np.array([len(s) for s in sequences], dtype=np.int64)
    config = WordsConfig(**({"alpha_runs": "repeated"} | settings))
    return compose_words(characters, counts, codes=CODES, codebook="feed", config=config)


@pytest.mark.parametrize("choose_by", ["description_length", "least_entropy"])
def test_planted_signs_become_words_and_their_parts_do_not(choose_by: ChooseBy) -> None:
    words = compose(videos(), max_size=128, transport=TransportConfig(choose_by=choose_by))
    (chosen,) = [entry for entry in words.curve if entry["chosen"]]
    assert set(SIGNS) <= set(words.words)
    assert chosen["kept"] == len(words.words) < chosen["size"]
    halves = {sign[:2] for sign in SIGNS} | {sign[2:] for sign in SIGNS}
    assert len(halves & set(words.words)) <= 5
    characters = [c for sign in SIGNS[:4] for c in sign]
    result = words.segment(torch.tensor(characters), torch.tensor([16]))
    assert [words.spell(w) for w in result.words.tolist()] == list(SIGNS[:4])


def test_transport_differs_from_taking_the_first_merges() -> None:
    """Transport has an effect: the same number of merges in order lacks signs that transport keeps."""
    words = compose(videos(), size=90, max_size=90)
    first = compose(videos(), size=len(words.words), max_size=90, transport=TransportConfig(keep_share=0.0))
    assert len(first.words) == len(words.words)
    assert len(set(SIGNS) - set(words.words)) < len(set(SIGNS) - set(first.words))


def test_what_transport_starves_goes_where_that_shortens_the_description_and_stays_elsewhere() -> None:
    complete = compose(videos(), size=90, max_size=90, transport=TransportConfig(keep_share=0.0))
    planted = compose(videos(), size=90, max_size=90)
    assert planted.words == compose(videos(), size=90, max_size=90, transport=DROPPED).words
    assert len(planted.words) < len(complete.words)
    greedy = TransportConfig(keep_share=0.95)  # starves what lives too
    spared, dropped = (
        compose(videos(), size=90, max_size=90, transport=dataclasses.replace(greedy, drop=drop))
        for drop in get_args(Drop)
    )
    assert len(dropped.words) < len(spared.words) == len(complete.words)
    lengths = [words.curve[-1]["description_length"] for words in (planted, complete, dropped)]
    assert lengths == sorted(lengths)


def test_the_order_of_videos_does_not_matter() -> None:
    sequences = videos(120)
    expected = compose(sequences)
    np.random.default_rng(1).shuffle(sequences)
    assert compose(sequences) == expected


def test_the_curve_and_the_settings_are_recorded() -> None:
    transport = TransportConfig(choose_by="marginal_utility")
    words = compose(videos(100), increment=20, max_size=70, min_size=0, transport=transport)
    assert [entry["size"] for entry in words.curve] == [0, 20, 40, 60, 70]
    assert sum(entry["chosen"] for entry in words.curve) == 1
    assert all(entry["error"] < 1e-5 for entry in words.curve)
    best = max(words.curve[1:], key=lambda entry: entry["marginal_utility"])
    assert best["chosen"]
    settings = WordsConfig(increment=20, max_size=70, min_size=0, transport=transport)
    assert words.config == dataclasses.asdict(settings)
    assert (words.codes, words.codebook, words.slow_down) == (CODES, "feed", CODES)


def test_frequencies_are_those_of_the_segmentation() -> None:
    sequences = videos(100)
    words = compose(sequences)
    counted = np.zeros(words.size, dtype=int)
    for sequence in sequences:
        result = words.segment(torch.tensor(sequence), torch.tensor([len(sequence)])).words
        np.add.at(counted, result.numpy(), 1)
    assert words.frequencies == tuple(counted.tolist())


def test_an_explicit_size_and_none_at_all() -> None:
    words = compose(videos(100), size=50, transport=TransportConfig(keep_share=0.0))
    assert len(words.words) == 50
    bare = compose(videos(100), size=0)
    assert bare.words == ()
    assert bare.segment(torch.tensor([1, 2, 3]), torch.tensor([3])).words.tolist() == [1, 2, 3]


def test_slowing_down_is_a_character_of_words() -> None:
    """A sign whose second character always lasts long is a word that contains s₀."""
    rng = np.random.default_rng(0)
    sequences = [
        [c for s in rng.integers(0, 20, 8) for c in (2 * s, 2 * s + 1, *([2 * s + 1] * (3 if s == 7 else 0)))]
        for _ in range(200)
    ]
    words = compose(sequences, alpha_runs="all", size=40, max_size=200)
    assert (14, 15, CODES) in words.words
    assert words.alpha is not None
    result = words.segment(torch.tensor([14, 15, 15, 15, 15, 2, 3]), torch.tensor([7]))
    assert words.spell(int(result.words[0])) == (14, 15, CODES)


def test_scope_of_alpha_and_segmentation_are_passed_on() -> None:
    words = compose(videos(60), alpha_scope="video", alpha_runs="all", segmentation="longest")
    assert (words.alpha, words.repeated_only, words.segmentation) == (None, False, "longest")
    assert compose(videos(60)).alpha == pytest.approx(2.0, abs=0.05)


def test_the_longest_word_is_an_option() -> None:
    assert max(map(len, compose(videos(100), longest_word=3, size=60).words)) <= 3


def test_a_corpus_without_repetition_has_no_words_and_says_so_in_the_curve() -> None:
    words = compose([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    assert words.words == ()
    assert [(entry["size"], entry["chosen"]) for entry in words.curve] == [(0, True)]


def test_the_largest_size_is_chosen_with_a_hint_only(caplog: pytest.LogCaptureFixture) -> None:
    compose(videos(100), max_size=24, min_size=8, increment=8)
    assert "--words.max-size 48" in caplog.text
    caplog.clear()
    compose(videos(100), size=24, max_size=24)
    compose(videos(100), max_size=400)
    assert not caplog.text


def test_a_small_corpus_goes_on_with_characters_alone_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert compose([list(range(64))]).words == ()
    assert "64 characters in 1 videos yields 0" in caplog.text
    assert "more videos" in caplog.text


def test_bad_corpora_are_named() -> None:
    assert compose([list(range(64))], size=0).words == ()
    with pytest.raises(UsageError, match=r"collapsed: perplexity 1\.0"):
        compose([[3] * 50, [3] * 20 + [4]])
    with pytest.raises(UsageError, match="no characters"):
        compose([[]])
    with pytest.raises(UsageError, match="yields 0 candidate"):
        compose([[0, 1, 2], [3, 4, 5]], size=10)
    with pytest.raises(ValueError, match="codebook of 64"):
        compose([[0, 64]])


def test_too_few_characters_cannot_tell_a_collapse() -> None:
    words = compose([[3]])
    assert words.words == ()
    result = words.segment(torch.tensor([3]), torch.tensor([1]))
    assert result.words.tolist() == [3]


@pytest.mark.parametrize(
    "settings",
    [{"longest_word": 1}, {"increment": 0}, {"min_size": 5000}, {"size": -1}, {"min_frequency": 0}],
)
def test_impossible_settings_are_named(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        WordsConfig(**settings)
