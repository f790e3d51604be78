"""Words against signs that are known: by hand, by laws, and on a run in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from signllm.cra.word_codebook import WordCodebook
from signllm.errors import UsageError
from signllm.inspection.information import entropy, mutual_information, normalised_information, purity
from signllm.inspection.known_signs import KnownSign, read_known_signs
from signllm.inspection.similar_signs import (
    Moments,
    likeness,
    mantel,
    meaning,
    neighbours,
    overlap,
    similar,
    similar_signs,
    word_vectors,
)
from signllm.inspection.similar_words import draw_neighbours, lines, table
from signllm.training.checkpoint import load_weights
from tests.stages import path


def moments(words: list[int], occurrences: list[int], sign_of: list[int], parts: list[set[str]]) -> Moments:
    return Moments(
        characters=np.array(words) % 3,
        words=np.array(words),
        occurrences=np.array(occurrences),
        sign_of=np.array(sign_of),
        names=tuple("abcdefgh"[: len(parts)]),
        parts=tuple(map(frozenset, parts)),
    )


def test_information_by_hand() -> None:
    labels, halves = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert entropy(labels) == pytest.approx(np.log(2))
    assert mutual_information(labels, halves) == pytest.approx(0)
    assert normalised_information(labels, 1 - labels) == pytest.approx(1)
    assert normalised_information(labels, np.zeros(4, np.int64)) == 0
    assert purity(np.array([0, 0, 0, 1]), np.array([5, 5, 2, 2])) == pytest.approx(3 / 4)


def test_words_that_mean_one_sign_each_are_pure_and_more_than_chance() -> None:
    occurrences = np.repeat(np.arange(40), 3)
    sign_of = np.arange(40) % 4
    found = moments((sign_of[occurrences] + 10).tolist(), occurrences.tolist(), sign_of.tolist(), [set()] * 4)
    told = meaning(found.words, found)
    assert told["purity"] == told["nmi"] == 1.0
    assert told["purity_chance"] < 0.6
    assert told["nmi_chance"] < 0.3


def test_moments_of_no_sign_do_not_count() -> None:
    found = moments([1, 1, 2, 2], [-1, 0, 1, -1], [0, 1], [set(), set()])
    assert found.signs.tolist() == [-1, 0, 1, -1]
    assert meaning(found.words, found)["purity"] == 1.0


def test_overlap_and_likeness_by_hand() -> None:
    found = moments([1, 1, 2, 2, 2, 3], [0, 0, 0, 1, 1, 1], [0, 1], [{"x", "y"}, {"y", "z"}])
    assert overlap(found.words, found)[0, 1] == pytest.approx(1 / 3)
    assert np.diag(overlap(found.words, found)).tolist() == pytest.approx([1, 1])
    assert likeness(found.parts)[0, 1] == pytest.approx(1 / 3)


def test_mantel_finds_what_is_there_and_nothing_where_nothing_is() -> None:
    rng = np.random.default_rng(0)
    place = rng.random(20)
    near = -np.abs(place[:, None] - place[None])
    correlation, p = mantel(near, near**3)
    assert correlation == pytest.approx(1.0)
    assert p == pytest.approx(0.001)
    other = rng.random((20, 20))
    assert mantel(near, other + other.T)[1] > 0.05


def test_signs_that_share_parts_share_words() -> None:
    alike = moments(
        [0, 0, 0, 1, 5, 5, 5, 6], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3], [{"x"}, {"x"}, {"y"}, {"y"}]
    )
    told = similar(alike)
    assert (told["pairs"], told["pairs_alike"]) == (6, 2)
    assert told["words"]["overlap_alike"] == pytest.approx(0.5)
    assert told["words"]["overlap_others"] == 0
    assert told["words"]["spearman"] > 0.9
    assert similar(moments([1, 2], [0, 1], [0, 1], [set(), set()])) == {}


def test_a_table_of_signs_and_what_is_wrong_with_one(tmp_path: Path) -> None:
    file = tmp_path / "signs.tsv"
    file.write_text("id\tsign\tstart\tend\tparts\nv1\train\t3\t9\tflat chin\nv1\tsun\t9\t20\t\n")
    assert read_known_signs(file) == {
        "v1": [
            KnownSign(sign="rain", start=3, end=9, parts=frozenset({"flat", "chin"})),
            KnownSign(sign="sun", start=9, end=20),
        ]
    }
    truth = {"id": "t", "signs": ["a", "b"], "sign_starts": [2, 8], "starts": [2, 5, 8], "ends": [5, 8, 12]}
    (tmp_path / "truth.jsonl").write_text(json.dumps(truth | {"units": [4, 7, 4]}) + "\n")
    assert read_known_signs(tmp_path / "truth.jsonl") == {
        "t": [
            KnownSign(sign="a", start=2, end=8, parts=frozenset({"4", "7"})),
            KnownSign(sign="b", start=8, end=12, parts=frozenset({"4"})),
        ]
    }
    for text, said in (
        ("id\tsign\n", "missing: start, end"),
        ("id\tsign\tstart\tend\nv\tx\t9\t9\n", "is no sign"),
        ("id\tsign\tstart\tend\n", "there are no signs"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=said):
            read_known_signs(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_known_signs(tmp_path / "none.tsv")
    (tmp_path / "truth.jsonl").write_text("[]\n")
    with pytest.raises(UsageError, match="no truth of a demo"):
        read_known_signs(tmp_path / "truth.jsonl")


def test_word_vectors_are_means_of_their_characters_before_stage_3(composed: Path) -> None:
    run = composed / "pretrain"
    words, codes = WordCodebook.load(run), load_weights(run)["quantizer.codebook"].double().numpy()
    vectors = word_vectors(run, words)
    assert vectors.shape == (words.size, codes.shape[1])
    plain = [w for w in range(words.size) if words.slow_down not in words.spell(w)]
    assert any(len(words.spell(word)) > 1 for word in plain)
    for word in plain:
        assert vectors[word] == pytest.approx(codes[list(words.spell(word))].mean(axis=0), abs=1e-6)


def test_nearest_words_are_those_of_the_largest_cosine() -> None:
    words = WordCodebook(
        codes=2, words=((0, 1), (1, 0), (0, 0)), frequencies=(1,) * 6, alpha=None, codebook="x"
    )
    vectors = np.array([[0, 0], [0, 0], [0, 0], [1.0, 0.1], [0.9, 0.2], [-1.0, 0.3]])
    found = neighbours(
        moments([3, 3, 3, 4, 4, 5], [0, 0, 0, 1, 1, 2], [0, 0, 1], [set()] * 2), vectors, words
    )
    assert found.words.tolist() == [3, 4, 5]
    assert found.nearest[:, 0].tolist() == [4, 3, 4]
    assert found.sign_of == {3: ("a", 1.0), 4: ("a", 1.0), 5: ("b", 1.0)}
    assert found.agreement()["same_sign"] == pytest.approx(2 / 3)


def test_a_run_in_miniature_from_its_folder_to_the_picture(composed: Path, tmp_path: Path) -> None:
    known = {
        f"dev/{n}": [
            KnownSign(sign="one", start=0, end=14, parts=frozenset({"x"})),
            KnownSign(sign="two", start=14, end=frames, parts=frozenset({"x", "y"})),
            KnownSign(sign="three", start=frames - 6, end=frames, parts=frozenset({"z"})),
        ]
        for n, frames in enumerate(path.LENGTHS["dev"])
    }
    found = similar_signs(composed / "pretrain", composed / "shards", known, split="dev")
    assert (found.record["occurrences"], found.record["signs"]) == (9, 3)
    assert 0 < found.record["words"]["purity"] <= 1
    draw_neighbours(found, tmp_path / "similar.png", top=3)
    assert (tmp_path / "similar.png").stat().st_size > 1000
    assert len(table(found, top=2)) <= 2
    assert any("9 occurrences of 3 signs" in line for line in lines(found.record))
    with pytest.raises(UsageError, match="signs of no video"):
        similar_signs(composed / "pretrain", composed / "shards", {"other": []}, split="dev")
