"""Do similar signs share sign words? The words of a run are compared with the annotated signs of its videos.

Every character is labelled with the sign that is annotated at the middle frame of its clip, and with the sign
word that it became part of. Characters outside every annotated sign are not counted. Three questions are
answered, each with the value that is expected by chance:

- Do words correspond to signs? This is measured by the purity and the normalized mutual information of words
  and signs. Chance level: the names of the signs are permuted among their occurrences, which preserves all
  durations.
- Do signs that share parts share more words and characters than other signs do? The overlap of two signs is
  the sum, over all words, of the smaller of the two signs' shares. It is correlated (Spearman) with the
  Jaccard index of the signs' parts, and tested by a Mantel test, which permutes the signs of one of the two
  matrices.
- Which word vectors are nearest to each other, as the projector receives them, and do the words of such a
  pair correspond to the same sign?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from signllm.clip_geometry import middle_frame
from signllm.config import FinetuneConfig, PretrainConfig, load_config, run_stage
from signllm.cra.word_codebook import Segmentation, WordCodebook
from signllm.data.video.frame_rate import frame_numbers_to_read
from signllm.errors import UsageError
from signllm.experiments.encoded_split import EncodedSplit, load_or_encode_split
from signllm.experiments.information import normalized_information, purity
from signllm.experiments.sign_annotations import SignAnnotation
from signllm.models.word_vectors import WordVectors
from signllm.stages import trained_model
from signllm.training.checkpoint import complete_checkpoint, load_weights

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
CHANCE_PERMUTATIONS, MANTEL_PERMUTATIONS = 20, 999
NO_SIGN = -1


@dataclass(frozen=True, kw_only=True)
class AnnotatedCharacters:
    """All characters of the annotated videos of a split, labelled with words and signs.

    Attributes:
        characters: (n,) sign codes.
        words: (n,) id of the sign word that each character is part of.
        occurrences: (n,) index of the annotated occurrence at each character, −1 if there is none.
        sign_of: (occurrences,) index of the sign of each occurrence.
        names: name of each sign.
        parts: parts of each sign, the union over all of its annotations.
    """

    characters: Ints
    words: Ints
    occurrences: Ints
    sign_of: Ints
    names: tuple[str, ...]
    parts: tuple[frozenset[str], ...]

    @property
    def signs(self) -> Ints:
        """(n,) index of the sign at each character, −1 if there is none."""
        if not len(self.sign_of):
            return np.full(len(self.occurrences), NO_SIGN)
        return np.where(self.occurrences >= 0, self.sign_of[self.occurrences], NO_SIGN)


def annotate_characters(
    encoded: EncodedSplit, annotations: Mapping[str, Sequence[SignAnnotation]]
) -> AnnotatedCharacters:
    """Label the characters of all annotated videos of a split.

    Raises:
        UsageError: No video of the split is annotated.
    """
    names: dict[str, int] = {}
    parts: dict[str, frozenset[str]] = {}
    characters, words, occurrences = [], [], []
    sign_of: list[int] = []
    for place, sequence in zip(encoded.places, encoded.sequences, strict=True):
        sample = encoded.split.samples[place]
        if sample.id not in annotations:
            continue
        segmentation = encoded.words.segment(torch.from_numpy(sequence), torch.tensor([len(sequence)]))
        occurrence_at = np.full(len(sequence), NO_SIGN, np.int64)
        frames_read = frame_numbers_to_read(sample.frames, sample.fps, encoded.fps, encoded.max_frames)
        middles = middle_frame(np.arange(len(sequence)))
        # Annotations count frames of the stored video; the encoder may have read fewer of them.
        middle_frames = frames_read[np.minimum(middles, len(frames_read) - 1)]
        for annotation in annotations[sample.id]:
            is_inside = (middle_frames >= annotation.start) & (middle_frames < annotation.end)
            occurrence_at[is_inside] = len(sign_of)
            sign_of.append(names.setdefault(annotation.sign, len(names)))
            parts[annotation.sign] = parts.get(annotation.sign, frozenset()) | annotation.parts
        characters.append(sequence)
        words.append(segmentation.words.numpy()[segmentation.slot.numpy()])
        occurrences.append(occurrence_at)
    if not characters:
        raise UsageError(
            "the signs of no video of this split are annotated",
            where=f"split {encoded.split.name}",
            remedy="the ids of the table are those of the shards: `signllm shards info` shows some",
        )
    return AnnotatedCharacters(
        characters=np.concatenate(characters),
        words=np.concatenate(words),
        occurrences=np.concatenate(occurrences),
        sign_of=np.array(sign_of, np.int64),
        names=tuple(names),
        parts=tuple(parts[name] for name in names),
    )


def measure_sign_correspondence(
    labels: Ints, annotated: AnnotatedCharacters, *, seed: int = 0
) -> dict[str, float]:
    """Measure how well labels (n,) of the characters (words or codes) correspond to the annotated signs.

    Returns:
        ``purity`` and ``nmi`` (normalized mutual information), and the chance level of each under
        ``purity_chance`` and ``nmi_chance``.
    """
    rng = np.random.default_rng(seed)
    is_annotated = annotated.occurrences >= 0
    labels, occurrences = labels[is_annotated], annotated.occurrences[is_annotated]
    signs = annotated.sign_of
    assignments = [
        signs[occurrences],
        *(rng.permutation(signs)[occurrences] for _ in range(CHANCE_PERMUTATIONS)),
    ]
    purities = [purity(labels, assigned) for assigned in assignments]
    nmis = [normalized_information(labels, assigned) for assigned in assignments]
    return {
        "purity": purities[0],
        "purity_chance": float(np.mean(purities[1:])),
        "nmi": nmis[0],
        "nmi_chance": float(np.mean(nmis[1:])),
    }


def label_overlap(labels: Ints, annotated: AnnotatedCharacters) -> Floats:
    """Return (S, S): the overlap of the label distributions of every pair of signs, between 0 and 1.

    The overlap is Σ_v min(p(v | sign a), p(v | sign b)) over the labels v (words or codes).
    """
    is_annotated = annotated.signs >= 0
    share_SV = np.zeros((len(annotated.names), int(labels.max()) + 1))
    np.add.at(share_SV, (annotated.signs[is_annotated], labels[is_annotated]), 1)
    share_SV /= np.maximum(share_SV.sum(axis=1, keepdims=True), 1)
    return np.minimum(share_SV[:, None], share_SV[None]).sum(axis=2)


def jaccard_matrix(parts: Sequence[frozenset[str]]) -> Floats:
    """Return (S, S): the Jaccard index |a ∩ b| / |a ∪ b| of the parts of every pair of signs."""
    return np.array([[len(a & b) / max(1, len(a | b)) for b in parts] for a in parts])


def mantel_test(first_SS: Floats, second_SS: Floats, *, seed: int = 0) -> tuple[float, float]:
    """Correlate the off-diagonal elements of two symmetric matrices (Mantel 1967).

    Returns:
        Spearman's correlation, and its one-sided p-value: the share of permutations of the signs of one
        matrix that reach the observed correlation, the observed order included.
    """
    upper = np.triu_indices(len(first_SS), 1)
    fixed = _standardize(_rank_values(first_SS[upper]))
    ranks_SS = np.zeros_like(second_SS)
    ranks_SS[upper] = _standardize(_rank_values(second_SS[upper]))
    ranks_SS += ranks_SS.T
    observed = float((fixed * ranks_SS[upper]).mean())
    rng = np.random.default_rng(seed)
    at_least_observed = 0
    for _ in range(MANTEL_PERMUTATIONS):
        order = rng.permutation(len(first_SS))
        permuted = float((fixed * ranks_SS[np.ix_(order, order)][upper]).mean())
        at_least_observed += permuted >= observed - 1e-12
    return observed, (1 + at_least_observed) / (1 + MANTEL_PERMUTATIONS)


def _rank_values(values: Floats) -> Floats:
    """Return the rank of each value; equal values get the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _standardize(values: Floats) -> Floats:
    """Return values with mean 0 and standard deviation 1; constant values become 0."""
    deviation = values.std()
    return (values - values.mean()) / (deviation if deviation > 0 else 1.0)


def compare_signs_by_parts(annotated: AnnotatedCharacters, *, seed: int = 0) -> dict[str, Any]:
    """Test whether signs that share parts share more words and characters than other signs do.

    Returns:
        ``pairs`` and ``pairs_alike`` (pairs of signs, and those that share a part), and under ``words`` and
        ``characters`` the mean overlaps, Spearman's correlation and its p-value. Empty if no pair of signs
        shares a part, or if every pair does.
    """
    signs = np.unique(annotated.signs[annotated.signs >= 0])
    jaccard_SS = jaccard_matrix([annotated.parts[sign] for sign in signs])
    upper = np.triu_indices(len(signs), 1)
    shares_part = jaccard_SS[upper] > 0
    if not shares_part.any() or shares_part.all():
        return {}
    result: dict[str, Any] = {"pairs": len(shares_part), "pairs_alike": int(shares_part.sum())}
    for name, labels in (("words", annotated.words), ("characters", annotated.characters)):
        overlap_SS = label_overlap(labels, annotated)[np.ix_(signs, signs)]
        spearman, p = mantel_test(jaccard_SS, overlap_SS, seed=seed)
        result[name] = {
            "overlap_alike": float(overlap_SS[upper][shares_part].mean()),
            "overlap_others": float(overlap_SS[upper][~shares_part].mean()),
            "spearman": spearman,
            "p": p,
        }
    return result


def load_word_vectors(run: Path, words: WordCodebook) -> Floats:
    """Return (V, D), V = ``words.size``: the vector of every word id, as the run's projector receives it."""
    if run_stage(run) == trained_model.STAGE:
        checkpoint = complete_checkpoint(run)
        weights = load_weights(checkpoint, stage=trained_model.STAGE)
        encoder = load_config(run, FinetuneConfig).sign_llm.vq_sign
        codes = weights["vq_sign.quantizer.codebook"]
    else:
        weights, encoder = load_weights(run, stage="pretrain"), load_config(run, PretrainConfig).vq_sign
        codes = weights["quantizer.codebook"]
    assert encoder is not None
    vectors = WordVectors(words, encoder.encoder.width)
    own = {name.removeprefix("word_vectors."): tensor for name, tensor in weights.items()}
    vectors.load_state_dict({name: own[name] for name in vectors.state_dict() if name in own}, strict=False)
    # A segmentation in which every word id occurs exactly once, so that one call returns all word vectors.
    spelt = [
        [character for character in words.spell(word) if character != words.slow_down]
        for word in range(words.size)
    ]
    lengths = torch.tensor([len(words.spell(word)) for word in range(words.size)]).float()
    slot = torch.tensor([word for word, characters in enumerate(spelt) for _ in characters])
    index = torch.tensor([character for characters in spelt for character in characters])
    segmentation = Segmentation(
        words=torch.arange(words.size),
        counts=torch.tensor([words.size]),
        slot=slot,
        position=torch.tensor(
            [
                place
                for word in range(words.size)
                for place, character in enumerate(words.spell(word))
                if character != words.slow_down
            ]
        ),
        weight=1 / lengths[slot],
        slow_weight=torch.tensor(
            [float(len(words.spell(word)) - len(characters)) for word, characters in enumerate(spelt)]
        )
        / lengths,
    )
    with torch.no_grad():
        return np.asarray(vectors(codes.float()[index], index, segmentation).double().numpy())


@dataclass(frozen=True, kw_only=True)
class WordNeighbours:
    """The most used composed words, the words with the most similar vectors, and the signs of both.

    Attributes:
        words: (W,) word ids, the most used first.
        nearest: (W, k) ids of the most similar words, the most similar first.
        cosines: (W, k) cosine similarity of each word and neighbour.
        sign_of: word id → its most frequent sign, and the share of its annotated characters with that sign;
            words without an annotated character are absent.
        counts: word id → number of characters that are part of it.
    """

    words: Ints
    nearest: Ints
    cosines: Floats
    sign_of: Mapping[int, tuple[str, float]]
    counts: Mapping[int, int]

    def measure_agreement(self, *, seed: int = 0) -> dict[str, float]:
        """Measure how often a word and its nearest neighbour have the same most frequent sign.

        Returns:
            ``pairs``, ``same_sign`` (a share), and its chance level ``same_sign_chance`` with the signs of
            the neighbours permuted.
        """
        pairs = [
            (self.sign_of[word][0], self.sign_of[nearest][0])
            for word, nearest in zip(self.words.tolist(), self.nearest[:, 0].tolist(), strict=True)
            if word in self.sign_of and nearest in self.sign_of
        ]
        signs, neighbour_signs = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
        rng = np.random.default_rng(seed)
        chance = [
            np.mean(signs == rng.permutation(neighbour_signs))
            for _ in range(CHANCE_PERMUTATIONS if pairs else 0)
        ]
        return {
            "pairs": len(pairs),
            "same_sign": float(np.mean(signs == neighbour_signs)) if pairs else 0.0,
            "same_sign_chance": float(np.mean(chance)) if pairs else 0.0,
        }


def find_word_neighbours(
    annotated: AnnotatedCharacters, vectors_VD: Floats, words: WordCodebook, *, k: int = 2
) -> WordNeighbours:
    """Find the k most similar composed words of each that occurs, by the cosine of the centered vectors."""
    counts = np.bincount(annotated.words, minlength=words.size)
    used = np.flatnonzero(counts > 0)
    used = used[used > words.slow_down]
    used = used[np.argsort(-counts[used], kind="stable")]
    k = min(k, max(len(used) - 1, 0))
    unit_WD = vectors_VD[used] - vectors_VD[used].mean(axis=0)
    unit_WD /= np.maximum(np.linalg.norm(unit_WD, axis=1, keepdims=True), 1e-12)
    cosine_WW = unit_WD @ unit_WD.T
    np.fill_diagonal(cosine_WW, -np.inf)
    order_Wk = np.argsort(-cosine_WW, axis=1, kind="stable")[:, :k]
    return WordNeighbours(
        words=used,
        nearest=used[order_Wk],
        cosines=np.take_along_axis(cosine_WW, order_Wk, axis=1),
        sign_of=_most_frequent_signs(annotated),
        counts={int(word): int(counts[word]) for word in used},
    )


def _most_frequent_signs(annotated: AnnotatedCharacters) -> dict[int, tuple[str, float]]:
    """Return word id → its most frequent sign, and that sign's share of the word's annotated characters."""
    is_annotated = annotated.signs >= 0
    result = {}
    for word in np.unique(annotated.words[is_annotated]):
        counts = np.bincount(annotated.signs[is_annotated & (annotated.words == word)])
        result[int(word)] = (annotated.names[int(counts.argmax())], float(counts.max() / counts.sum()))
    return result


@dataclass(frozen=True, kw_only=True)
class SignComparison:
    """The result of the experiment.

    Attributes:
        record: all measured values, as JSON-compatible types.
        encoded: the characters of the split, from which clips can be drawn.
        neighbours: the most similar words of every word.
    """

    record: dict[str, Any]
    encoded: EncodedSplit
    neighbours: WordNeighbours


def compare_with_signs(
    run: Path,
    shards: Path | str,
    annotations: Mapping[str, Sequence[SignAnnotation]],
    *,
    split: str,
    seed: int = 0,
) -> SignComparison:
    """Compare the sign words of a run with annotated signs.

    Args:
        run: a pretrained and composed run, or a fine-tuned one.
        shards: folder or address of the shards.
        annotations: annotated signs of videos of the split, by video id.
        split: name of the split, preferably one that the run was not trained on.
        seed: random seed of the permutations.

    Raises:
        UsageError: There is no such run or split, or no video of the split is annotated.
    """
    encoded = load_or_encode_split(run, shards, split)
    annotated = annotate_characters(encoded, annotations)
    neighbours = find_word_neighbours(annotated, load_word_vectors(run, encoded.words), encoded.words)
    record = {
        "run": str(run),
        "split": split,
        "moments": int((annotated.occurrences >= 0).sum()),
        "occurrences": len(annotated.sign_of),
        "signs": len(annotated.names),
        "words": measure_sign_correspondence(annotated.words, annotated, seed=seed),
        "characters": measure_sign_correspondence(annotated.characters, annotated, seed=seed),
        "similar": compare_signs_by_parts(annotated, seed=seed),
        "nearest": neighbours.measure_agreement(seed=seed),
    }
    return SignComparison(record=record, encoded=encoded, neighbours=neighbours)
