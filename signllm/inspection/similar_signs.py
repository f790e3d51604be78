"""Do similar signs share words? The second experiment of the paper's card, against signs that are known.

A moment is one character; it belongs to the sign that its middle frame shows, and to the word that it went
into; moments of no sign do not count. Three questions, each beside what chance gives:

- Do words mean signs? Purity and normalised mutual information of words and signs over moments. Chance: the
  signs' names dealt out anew among their occurrences, which keeps all durations.
- Are signs that are alike (that share parts) read as the same words and characters more than others?
  Overlap of two signs: the sum over words of the smaller of both shares. Spearman's correlation with the
  Jaccard index of their parts, and a Mantel test: the signs of one of both matrices shuffled.
- Which words are nearest to each other as vectors, as the projector reads them, and do they mean one sign?
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
from signllm.data.frame_rate import frame_numbers_to_read
from signllm.errors import UsageError
from signllm.inspection.information import normalised_information, purity
from signllm.inspection.known_signs import KnownSign
from signllm.inspection.reading import Reading, read_characters
from signllm.models.word_vectors import WordVectors
from signllm.stages import finetuned
from signllm.training.checkpoint import load_weights, whole_checkpoint

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SHUFFLES, MANTEL = 20, 999
NO_SIGN = -1


@dataclass(frozen=True, kw_only=True)
class Moments:
    """All moments of a split.

    Attributes:
        characters: (n,) codes.
        words: (n,) ids.
        occurrences: (n,) number of the occurrence of a sign, −1 of none.
        sign_of: (occurrences,) number of its sign.
        names: of the signs.
        parts: of each sign, all that were ever told of it.
    """

    characters: Ints
    words: Ints
    occurrences: Ints
    sign_of: Ints
    names: tuple[str, ...]
    parts: tuple[frozenset[str], ...]

    @property
    def signs(self) -> Ints:
        """(n,) number of the sign at each moment, −1 of none."""
        if not len(self.sign_of):
            return np.full(len(self.occurrences), NO_SIGN)
        return np.where(self.occurrences >= 0, self.sign_of[self.occurrences], NO_SIGN)


def moments_of(reading: Reading, known: Mapping[str, Sequence[KnownSign]]) -> Moments:
    """Return the moments of the videos whose signs are known.

    Raises:
        UsageError: of no video of the split.
    """
    names: dict[str, int] = {}
    parts: dict[str, frozenset[str]] = {}
    characters, words, occurrences = [], [], []
    sign_of: list[int] = []
    for place, sequence in zip(reading.places, reading.sequences, strict=True):
        sample = reading.split.samples[place]
        if sample.id not in known:
            continue
        cut = reading.words.segment(torch.from_numpy(sequence), torch.tensor([len(sequence)]))
        shown = np.full(len(sequence), NO_SIGN, np.int64)
        read = frame_numbers_to_read(sample.frames, sample.fps, reading.fps, reading.max_frames)
        middles = middle_frame(np.arange(len(sequence)))
        frames = read[np.minimum(middles, len(read) - 1)]
        for sign in known[sample.id]:
            shown[(frames >= sign.start) & (frames < sign.end)] = len(sign_of)
            sign_of.append(names.setdefault(sign.sign, len(names)))
            parts[sign.sign] = parts.get(sign.sign, frozenset()) | sign.parts
        characters.append(sequence)
        words.append(cut.words.numpy()[cut.slot.numpy()])
        occurrences.append(shown)
    if not characters:
        raise UsageError(
            "the signs of no video of this split are known",
            where=f"split {reading.split.name}",
            remedy="the ids of the table are those of the shards: `signllm shards info` shows some",
        )
    return Moments(
        characters=np.concatenate(characters),
        words=np.concatenate(words),
        occurrences=np.concatenate(occurrences),
        sign_of=np.array(sign_of, np.int64),
        names=tuple(names),
        parts=tuple(parts[name] for name in names),
    )


def meaning(labels: Ints, moments: Moments, *, seed: int = 0) -> dict[str, float]:
    """Return purity and normalised mutual information of labels (n,) with the signs, and by chance."""
    rng = np.random.default_rng(seed)
    shown = moments.occurrences >= 0
    given, at = labels[shown], moments.occurrences[shown]
    dealt = [moments.sign_of[at], *(rng.permutation(moments.sign_of)[at] for _ in range(SHUFFLES))]
    pure = [purity(given, signs) for signs in dealt]
    shared = [normalised_information(given, signs) for signs in dealt]
    return {
        "purity": pure[0],
        "purity_chance": float(np.mean(pure[1:])),
        "nmi": shared[0],
        "nmi_chance": float(np.mean(shared[1:])),
    }


def overlap(labels: Ints, moments: Moments) -> Floats:
    """Return (S, S): of two signs the sum over labels of the smaller of both shares of their moments."""
    shown = moments.signs >= 0
    table_SV = np.zeros((len(moments.names), int(labels.max()) + 1))
    np.add.at(table_SV, (moments.signs[shown], labels[shown]), 1)
    table_SV /= np.maximum(table_SV.sum(axis=1, keepdims=True), 1)
    return np.minimum(table_SV[:, None], table_SV[None]).sum(axis=2)


def likeness(parts: Sequence[frozenset[str]]) -> Floats:
    """Return (S, S): the Jaccard index of the parts of two signs."""
    return np.array([[len(a & b) / max(1, len(a | b)) for b in parts] for a in parts])


def mantel(one_SS: Floats, other_SS: Floats, *, seed: int = 0) -> tuple[float, float]:
    """Return Spearman's correlation of two matrices off their diagonals, and its one-sided p.

    p: how often the signs of one, shuffled, correlate as much (Mantel 1967); the observed one counts.
    """
    upper = np.triu_indices(len(one_SS), 1)
    fixed = _standardised(_ranks(one_SS[upper]))
    ranks_SS = np.zeros_like(other_SS)
    ranks_SS[upper] = _standardised(_ranks(other_SS[upper]))
    ranks_SS += ranks_SS.T
    observed = float((fixed * ranks_SS[upper]).mean())
    rng = np.random.default_rng(seed)
    more = 0
    for _ in range(MANTEL):
        order = rng.permutation(len(one_SS))
        more += float((fixed * ranks_SS[np.ix_(order, order)][upper]).mean()) >= observed - 1e-12
    return observed, (1 + more) / (1 + MANTEL)


def _ranks(values: Floats) -> Floats:
    """Return ranks, those of equal values being their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _standardised(values: Floats) -> Floats:
    deviation = values.std()
    return (values - values.mean()) / (deviation if deviation > 0 else 1.0)


def similar(moments: Moments, *, seed: int = 0) -> dict[str, Any]:
    """Return whether signs that share parts share words and characters; empty where parts are not known."""
    shown = np.unique(moments.signs[moments.signs >= 0])
    alike_SS = likeness([moments.parts[sign] for sign in shown])
    upper = np.triu_indices(len(shown), 1)
    share = alike_SS[upper] > 0
    if not share.any() or share.all():
        return {}
    found: dict[str, Any] = {"pairs": len(share), "pairs_alike": int(share.sum())}
    for name, labels in (("words", moments.words), ("characters", moments.characters)):
        overlap_SS = overlap(labels, moments)[np.ix_(shown, shown)]
        spearman, p = mantel(alike_SS, overlap_SS, seed=seed)
        found[name] = {
            "overlap_alike": float(overlap_SS[upper][share].mean()),
            "overlap_others": float(overlap_SS[upper][~share].mean()),
            "spearman": spearman,
            "p": p,
        }
    return found


def word_vectors(run: Path, words: WordCodebook) -> Floats:
    """Return (V, D), V = ``words.size``: every word id as the projector of the run reads it."""
    if run_stage(run) == finetuned.STAGE:
        checkpoint = whole_checkpoint(run)
        weights = load_weights(checkpoint, stage=finetuned.STAGE)
        encoder = load_config(run, FinetuneConfig).sign_llm.vq_sign
        codes = weights["vq_sign.quantizer.codebook"]
    else:
        weights, encoder = load_weights(run, stage="pretrain"), load_config(run, PretrainConfig).vq_sign
        codes = weights["quantizer.codebook"]
    assert encoder is not None
    vectors = WordVectors(words, encoder.encoder.width)
    own = {name.removeprefix("word_vectors."): tensor for name, tensor in weights.items()}
    vectors.load_state_dict({name: own[name] for name in vectors.state_dict() if name in own}, strict=False)
    spelt = [
        [character for character in words.spell(word) if character != words.slow_down]
        for word in range(words.size)
    ]
    lengths = torch.tensor([len(words.spell(word)) for word in range(words.size)]).float()
    slot = torch.tensor([word for word, characters in enumerate(spelt) for _ in characters])
    index = torch.tensor([character for characters in spelt for character in characters])
    cut = Segmentation(
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
            [float(len(words.spell(w)) - len(characters)) for w, characters in enumerate(spelt)]
        )
        / lengths,
    )
    with torch.no_grad():
        return np.asarray(vectors(codes.float()[index], index, cut).double().numpy())


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The words most used, their nearest words, and what both mean.

    Attributes:
        words: (W,) ids, the most used first.
        nearest: (W, k) ids, the nearest first.
        cosines: (W, k) of word and nearest.
        sign_of: word id → its commonest sign and the share of its moments; words of no sign are absent.
        counts: word id → moments.
    """

    words: Ints
    nearest: Ints
    cosines: Floats
    sign_of: Mapping[int, tuple[str, float]]
    counts: Mapping[int, int]

    def agreement(self, *, seed: int = 0) -> dict[str, float]:
        """Return how often a word and its nearest have the same commonest sign, and by chance."""
        pairs = [
            (self.sign_of[word][0], self.sign_of[near][0])
            for word, near in zip(self.words.tolist(), self.nearest[:, 0].tolist(), strict=True)
            if word in self.sign_of and near in self.sign_of
        ]
        ours, theirs = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
        rng = np.random.default_rng(seed)
        chance = [np.mean(ours == rng.permutation(theirs)) for _ in range(SHUFFLES)] if pairs else [0.0]
        return {
            "pairs": len(pairs),
            "same_sign": float(np.mean(ours == theirs)) if pairs else 0.0,
            "same_sign_chance": float(np.mean(chance)),
        }


def neighbours(moments: Moments, vectors_VD: Floats, words: WordCodebook, *, k: int = 2) -> Neighbours:
    """Find the nearest words, by cosine, among the composed words that were read."""
    counts = np.bincount(moments.words, minlength=words.size)
    used = np.flatnonzero(counts > 0)
    used = used[used > words.slow_down]
    used = used[np.argsort(-counts[used], kind="stable")]
    k = min(k, max(len(used) - 1, 0))
    unit_WD = vectors_VD[used] - vectors_VD[used].mean(axis=0)
    unit_WD /= np.maximum(np.linalg.norm(unit_WD, axis=1, keepdims=True), 1e-12)
    cosine_WW = unit_WD @ unit_WD.T
    np.fill_diagonal(cosine_WW, -np.inf)
    order_Wk = np.argsort(-cosine_WW, axis=1, kind="stable")[:, :k]
    return Neighbours(
        words=used,
        nearest=used[order_Wk],
        cosines=np.take_along_axis(cosine_WW, order_Wk, axis=1),
        sign_of=_commonest(moments),
        counts={int(word): int(counts[word]) for word in used},
    )


def _commonest(moments: Moments) -> dict[int, tuple[str, float]]:
    """Return of each word id its commonest sign and that sign's share of the word's moments."""
    shown = moments.signs >= 0
    found = {}
    for word in np.unique(moments.words[shown]):
        signs = np.bincount(moments.signs[shown & (moments.words == word)])
        found[int(word)] = (moments.names[int(signs.argmax())], float(signs.max() / signs.sum()))
    return found


@dataclass(frozen=True, kw_only=True)
class SimilarSigns:
    """What the experiment found: ``record`` for programs, and what a picture needs."""

    record: dict[str, Any]
    reading: Reading
    found: Neighbours


def similar_signs(
    run: Path, shards: Path | str, known: Mapping[str, Sequence[KnownSign]], *, split: str, seed: int = 0
) -> SimilarSigns:
    """Compare the words of a run with known signs.

    Args:
        run: a pretrained and composed run, or a fine-tuned one.
        shards: folder or address of the shards.
        known: signs of videos of the split, by id.
        split: which; best one that was not trained on.
        seed: of the shuffling.

    Raises:
        UsageError: no such run or split, or of no video the signs are known.
    """
    reading = read_characters(run, shards, split)
    moments = moments_of(reading, known)
    found = neighbours(moments, word_vectors(run, reading.words), reading.words)
    record = {
        "run": str(run),
        "split": split,
        "moments": int((moments.occurrences >= 0).sum()),
        "occurrences": len(moments.sign_of),
        "signs": len(moments.names),
        "words": meaning(moments.words, moments, seed=seed),
        "characters": meaning(moments.characters, moments, seed=seed),
        "similar": similar(moments, seed=seed),
        "nearest": found.agreement(seed=seed),
    }
    return SimilarSigns(record=record, reading=reading, found=found)
