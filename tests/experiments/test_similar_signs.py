"""Comparing sign words with annotated signs: values by hand, properties, and a small trained run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from signllm.cra.word_codebook import WordCodebook
from signllm.errors import UsageError
from signllm.experiments.information import entropy, mutual_information, normalized_information, purity
from signllm.experiments.neighbour_sheet import draw_neighbours, format_neighbour_table, format_results
from signllm.experiments.sign_annotations import SignAnnotation, read_sign_annotations
from signllm.experiments.similar_signs import (
    AnnotatedCharacters,
    compare_signs_by_parts,
    compare_with_signs,
    find_word_neighbours,
    jaccard_matrix,
    label_overlap,
    load_word_vectors,
    mantel_test,
    measure_sign_correspondence,
)
from signllm.training.checkpoint import load_weights
from tests.stages import path


def label(
    words: list[int], occurrences: list[int], sign_of: list[int], parts: list[set[str]]
) -> AnnotatedCharacters:
    return AnnotatedCharacters(
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
    assert normalized_information(labels, 1 - labels) == pytest.approx(1)
    assert normalized_information(labels, np.zeros(4, np.int64)) == 0
    assert purity(np.array([0, 0, 0, 1]), np.array([5, 5, 2, 2])) == pytest.approx(3 / 4)


def test_words_of_one_sign_each_have_purity_1_above_chance() -> None:
    occurrences = np.repeat(np.arange(40), 3)
    sign_of = np.arange(40) % 4
    annotated = label(
        (sign_of[occurrences] + 10).tolist(), occurrences.tolist(), sign_of.tolist(), [set()] * 4
    )
    result = measure_sign_correspondence(annotated.words, annotated)
    assert result["purity"] == result["nmi"] == 1.0
    assert result["purity_chance"] < 0.6
    assert result["nmi_chance"] < 0.3


def test_characters_outside_all_signs_are_not_counted() -> None:
    annotated = label([1, 1, 2, 2], [-1, 0, 1, -1], [0, 1], [set(), set()])
    assert annotated.signs.tolist() == [-1, 0, 1, -1]
    assert measure_sign_correspondence(annotated.words, annotated)["purity"] == 1.0


def test_overlap_and_jaccard_index_by_hand() -> None:
    annotated = label([1, 1, 2, 2, 2, 3], [0, 0, 0, 1, 1, 1], [0, 1], [{"x", "y"}, {"y", "z"}])
    assert label_overlap(annotated.words, annotated)[0, 1] == pytest.approx(1 / 3)
    assert np.diag(label_overlap(annotated.words, annotated)).tolist() == pytest.approx([1, 1])
    assert jaccard_matrix(annotated.parts)[0, 1] == pytest.approx(1 / 3)


def test_mantel_test_detects_correlation_and_accepts_independence() -> None:
    rng = np.random.default_rng(0)
    place = rng.random(20)
    near = -np.abs(place[:, None] - place[None])
    correlation, p = mantel_test(near, near**3)
    assert correlation == pytest.approx(1.0)
    assert p == pytest.approx(0.001)
    other = rng.random((20, 20))
    assert mantel_test(near, other + other.T)[1] > 0.05


def test_signs_that_share_parts_share_words() -> None:
    alike = label(
        [0, 0, 0, 1, 5, 5, 5, 6], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3], [{"x"}, {"x"}, {"y"}, {"y"}]
    )
    result = compare_signs_by_parts(alike)
    assert (result["pairs"], result["pairs_alike"]) == (6, 2)
    assert result["words"]["overlap_alike"] == pytest.approx(0.5)
    assert result["words"]["overlap_others"] == 0
    assert result["words"]["spearman"] > 0.9
    assert compare_signs_by_parts(label([1, 2], [0, 1], [0, 1], [set(), set()])) == {}


def test_annotation_tables_and_their_errors(tmp_path: Path) -> None:
    file = tmp_path / "signs.tsv"
    file.write_text("id\tsign\tstart\tend\tparts\nv1\train\t3\t9\tflat chin\nv1\tsun\t9\t20\t\n")
    assert read_sign_annotations(file) == {
        "v1": [
            SignAnnotation(sign="rain", start=3, end=9, parts=frozenset({"flat", "chin"})),
            SignAnnotation(sign="sun", start=9, end=20),
        ]
    }
    truth = {"id": "t", "signs": ["a", "b"], "sign_starts": [2, 8], "starts": [2, 5, 8], "ends": [5, 8, 12]}
    (tmp_path / "truth.jsonl").write_text(json.dumps(truth | {"units": [4, 7, 4]}) + "\n")
    assert read_sign_annotations(tmp_path / "truth.jsonl") == {
        "t": [
            SignAnnotation(sign="a", start=2, end=8, parts=frozenset({"4", "7"})),
            SignAnnotation(sign="b", start=8, end=12, parts=frozenset({"4"})),
        ]
    }
    for text, problem in (
        ("id\tsign\n", "missing: start, end"),
        ("id\tsign\tstart\tend\nv\tx\t9\t9\n", "not a valid annotation"),
        ("id\tsign\tstart\tend\n", "there are no signs"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=problem):
            read_sign_annotations(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_sign_annotations(tmp_path / "none.tsv")
    (tmp_path / "truth.jsonl").write_text("[]\n")
    with pytest.raises(UsageError, match="not the truth"):
        read_sign_annotations(tmp_path / "truth.jsonl")


def test_word_vectors_before_stage_3_are_means_of_their_characters(composed: Path) -> None:
    run = composed / "pretrain"
    words, codes = WordCodebook.load(run), load_weights(run)["quantizer.codebook"].double().numpy()
    vectors = load_word_vectors(run, words)
    assert vectors.shape == (words.size, codes.shape[1])
    plain = [w for w in range(words.size) if words.slow_down not in words.spell(w)]
    assert any(len(words.spell(word)) > 1 for word in plain)
    for word in plain:
        assert vectors[word] == pytest.approx(codes[list(words.spell(word))].mean(axis=0), abs=1e-6)


def test_nearest_words_have_the_largest_cosine() -> None:
    words = WordCodebook(
        codes=2, words=((0, 1), (1, 0), (0, 0)), frequencies=(1,) * 6, alpha=None, codebook="x"
    )
    vectors = np.array([[0, 0], [0, 0], [0, 0], [1.0, 0.1], [0.9, 0.2], [-1.0, 0.3]])
    neighbours = find_word_neighbours(
        label([3, 3, 3, 4, 4, 5], [0, 0, 0, 1, 1, 2], [0, 0, 1], [set()] * 2), vectors, words
    )
    assert neighbours.words.tolist() == [3, 4, 5]
    assert neighbours.nearest[:, 0].tolist() == [4, 3, 4]
    assert neighbours.sign_of == {3: ("a", 1.0), 4: ("a", 1.0), 5: ("b", 1.0)}
    assert neighbours.measure_agreement()["same_sign"] == pytest.approx(2 / 3)


def test_a_small_run_from_its_folder_to_the_picture(composed: Path, tmp_path: Path) -> None:
    annotations = {
        f"dev/{n}": [
            SignAnnotation(sign="one", start=0, end=14, parts=frozenset({"x"})),
            SignAnnotation(sign="two", start=14, end=frames, parts=frozenset({"x", "y"})),
            SignAnnotation(sign="three", start=frames - 6, end=frames, parts=frozenset({"z"})),
        ]
        for n, frames in enumerate(path.LENGTHS["dev"])
    }
    comparison = compare_with_signs(composed / "pretrain", composed / "shards", annotations, split="dev")
    assert (comparison.record["occurrences"], comparison.record["signs"]) == (9, 3)
    assert 0 < comparison.record["words"]["purity"] <= 1
    draw_neighbours(comparison, tmp_path / "similar.png", top=3)
    assert (tmp_path / "similar.png").stat().st_size > 1000
    assert len(format_neighbour_table(comparison, top=2)) <= 2
    assert any("9 occurrences of 3 signs" in line for line in format_results(comparison.record))
    with pytest.raises(UsageError, match="signs of no video"):
        compare_with_signs(composed / "pretrain", composed / "shards", {"other": []}, split="dev")
