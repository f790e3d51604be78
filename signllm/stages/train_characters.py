"""The characters of the train split, stored in a run folder, and the words composed from them (CRA).

All ranks share the encoding, shard by shard; one rank then composes the words, which is deterministic.
Complete files that still fit are not written again: a killed job continues with the missing shards.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from signllm.config import ComposeConfig
from signllm.cra.composition import compose_words
from signllm.cra.word_codebook import WordCodebook, fingerprint
from signllm.data.loading.characters import characters_path, load_packed_characters, save_characters
from signllm.data.loading.mixture import Mixture
from signllm.data.shards.index import Split
from signllm.distributed.ranks import Ranks
from signllm.errors import UsageError
from signllm.models.vq_sign.vq_sign import VQSign, fingerprinted_tensor
from signllm.stages.batches import TRAIN
from signllm.stages.encoding import encode_shards, missing_shards
from signllm.validation import to_plain


@dataclass(frozen=True, kw_only=True)
class TrainCharacters:
    """The characters that one encoder reads from the train split.

    Attributes:
        run: the run folder that contains the files.
        split: the train split.
        shas: checksum of each shard.
        vq_sign: the encoder, in evaluation mode on this rank's device.
        made_by: everything that decides the characters of a video.
        config: settings of data and words; nothing is augmented.
    """

    run: Path
    split: Split
    shas: tuple[str, ...]
    vq_sign: VQSign
    made_by: dict[str, Any]
    config: ComposeConfig

    @property
    def words_config(self) -> dict[str, Any]:
        """Everything that decides the words, which records it."""
        shards = hashlib.sha256("".join(self.shas).encode()).hexdigest()[:16]
        return {"words": to_plain(self.config.words), **self.made_by, "shards": shards}

    def missing(self) -> list[int]:
        """Return the shards that have to be encoded; remove files that belong to no shard (one rank)."""
        return missing_shards(self.run, self.split, self.made_by, self.shas)

    def encode(self, shards: list[int], ranks: Ranks) -> None:
        """Encode these shards into their files (all ranks).

        Raises:
            UsageError: as in :func:`signllm.stages.encoding.encode_shards`.
        """

        def write(shard: int, characters: dict[str, np.ndarray]) -> None:
            made_by = {**self.made_by, "shard": self.shas[shard]}
            save_characters(self._file(shard), characters, self.made_by["codebook"], made_by)

        config = self.config
        encode_shards(
            self.vq_sign,
            self.split,
            shards,
            write,
            data=config.data,
            ranks=ranks,
            batch_size=config.batch_size,
        )

    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all characters of the split, int64 (sum N,), and the counts of its videos, int64 (B,).

        Raises:
            UsageError: too many videos could not be read.
        """
        characters, counts = load_packed_characters(
            [self._file(shard) for shard in range(len(self.split.tars))]
        )
        unreadable, allowed = len(self.split) - len(counts), self.config.data.max_bad * len(self.split)
        if unreadable > allowed or len(counts) == 0:
            raise UsageError(
                f"{unreadable} of {len(self.split)} videos could not be read, allowed {allowed:g}",
                where=self.split.tars[0],
                remedy="`signllm shards verify` names the damage; or allow more with --data.max-bad",
            )
        return characters, counts

    def compose(self, characters: np.ndarray, counts: np.ndarray) -> WordCodebook:
        """Return the words of packed characters, with the record of how they were made.

        Without a codebook there are no characters to compose, and no words.

        Raises:
            UsageError: the characters cannot be composed.
        """
        codes, codebook = self.vq_sign.config.quantizer.codes, self.made_by["codebook"]
        if not self.vq_sign.quantizer.has_codes:
            none = (0,) * (codes + 1)
            return WordCodebook(
                codes=codes,
                words=(),
                frequencies=none,
                alpha=None,
                codebook=codebook,
                config=self.words_config,
            )
        words = compose_words(characters, counts, codes=codes, codebook=codebook, config=self.config.words)
        return dataclasses.replace(words, config=self.words_config)

    def _file(self, shard: int) -> Path:
        return characters_path(self.run, self.split.name, shard)


def open_train_characters(
    run: Path, dataset: Mixture, vq_sign: VQSign, checkpoint: Path | None, config: ComposeConfig
) -> TrainCharacters:
    """Return the characters that ``vq_sign``, with the weights of ``checkpoint``, reads from a dataset.

    Raises:
        UsageError: there is no train split.
    """
    split = dataset.split(TRAIN)
    made_by: dict[str, Any] = {
        "codebook": fingerprint(fingerprinted_tensor(vq_sign.state_dict(), vq_sign.config)),
        "checkpoint": checkpoint.name if checkpoint else None,
        "size": config.data.size,
        "shift": config.data.augment.shift,
        "max_frames": config.data.max_frames,
    }
    if config.data.fps is not None:  # older runs have no rate
        made_by["fps"] = config.data.fps
    if dataset.labels:
        made_by["datasets"] = list(dataset.labels)  # they are part of the ids
    shas = dataset.checksums(TRAIN)
    return TrainCharacters(run=run, split=split, shas=shas, vq_sign=vq_sign, made_by=made_by, config=config)
