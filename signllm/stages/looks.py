"""What TensorBoard shows of a model at each validation: held-out videos, and the use of codes and words.

A video is shown with its tokens and the text that is written of it; use is counted in training since the last
look. All ranks look at the same few videos, because under ZeRO-3 a model computes on all ranks or on none;
rank 0 draws. Looking draws no random number and changes nothing that learns.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import nn

from signllm.data.batch import LoadedSample, collate
from signllm.data.index import Split
from signllm.data.mixture import open_mixture
from signllm.data.pipeline import DataConfig, VideoSource
from signllm.data.token_strip import WordSpan, draw_strip
from signllm.models.collectives import reduce_sum
from signllm.models.generation import GenerationConfig
from signllm.models.quantizer import Quantizer
from signllm.models.sign_llm import SignLLM
from signllm.models.vq_sign import VQSign
from signllm.stages.batches import DEV, TRAIN
from signllm.storage import storage_timeout_s, storage_wait_policy
from signllm.training.engine import Ranks
from signllm.training.metrics import Shown

log = logging.getLogger(__name__)
LOOK_TIMEOUT_S = 60.0
"""Seconds that a video to be shown waits for storage: the other ranks wait for it."""


@dataclass(frozen=True)
class _Seen:
    """A video as the model reads it; ``text`` is None before there is a language model."""

    item: LoadedSample
    characters: Sequence[int]
    words: Sequence[WordSpan] = ()
    text: str | None = None


class Looking:
    """Looks at a model, for :func:`signllm.training.loop.fit`.

    Args:
        shards: folder or address; the first videos of ``dev``, or of ``train`` where there is none.
        data: how they are read, without augmentation.
        videos: how many.
        ranks: of the job.
        generation: how text is written, here always the likeliest; None in stage 1.
    """

    def __init__(
        self,
        shards: Path | str,
        data: DataConfig,
        videos: int,
        ranks: Ranks,
        generation: GenerationConfig | None = None,
    ) -> None:
        index = open_mixture(shards)
        self.split: Split = index.split(DEV if DEV in index.splits else TRAIN)
        plain = replace(data, cache_gb=0.0, max_frames_per_batch=None)
        self.source, self.videos, self.ranks = VideoSource(self.split, plain, augment=False), videos, ranks
        self.generation = generation and replace(generation, beams=1, temperature=None, n_best=1)

    def __call__(self, model: nn.Module, step: int) -> Shown:
        """Return what is seen of a model at rest (all ranks); empty but on rank 0."""
        vq_sign = model.vq_sign if isinstance(model, SignLLM) else model
        assert isinstance(vq_sign, VQSign)
        histograms = _code_use(vq_sign.quantizer)
        if isinstance(model, SignLLM):
            histograms |= _word_use(model)
        seen = self._seen(model)
        if self.ranks.rank != 0:
            return Shown({}, {}, {})
        pictures = {f"videos/{one.item.id}": _picture(one) for one in seen}
        written = [(one.item.id, one.item.text, one.text) for one in seen if one.text is not None]
        texts = {"translations": said_and_written(written)} if written else {}
        return Shown(histograms, pictures, texts, written)

    def _seen(self, model: nn.Module) -> list[_Seen]:
        """Read the videos with the model (all ranks); none if a rank cannot get at them."""
        items: list[LoadedSample] = []
        try:
            with storage_wait_policy(min(LOOK_TIMEOUT_S, storage_timeout_s())):
                for place in range(min(self.videos, len(self.source))):
                    items.append(self.source.load(place, seed=0, epoch=0, position=0))
        except Exception as error:  # a picture is not worth a run
            log.warning("TensorBoard shows no videos of %s now: %s", self.split.name, error)
        wanted = min(self.videos, len(self.source))
        lacking = torch.tensor(float(len(items) < wanted), device=self.ranks.device)
        if not wanted or float(reduce_sum(lacking)):
            return []
        batch = collate(
            items, is_real=[True] * len(items), positions=np.arange(len(items)), epoch=0, seed=0
        ).to(self.ranks.device)
        if isinstance(model, SignLLM):
            written = model.generate(batch, self.generation)
            seen = [
                _Seen(item, one.characters, _words(one.words, one.slots), one.text)
                for item, one in zip(items, written, strict=True)
            ]
        else:
            encoded = model.quantize(batch)
            parts = encoded.quantized.index.split(encoded.counts.tolist())
            seen = [_Seen(item, part.tolist()) for item, part in zip(items, parts, strict=True)]
        return [one for one in seen if one.item.bad is None]


def _words(words: Sequence[int], slots: Sequence[int]) -> list[WordSpan]:
    """Return the words over a video's characters, named by their numbers; s0 by itself has no characters."""
    found, start = [], 0
    for slot, members in groupby(slots):
        stop = start + len(list(members))
        found.append(WordSpan(f"w{words[slot]}", start, stop))
        start = stop
    return found


def _picture(seen: _Seen) -> np.ndarray:
    assert seen.item.frames is not None
    lines = [f"{seen.item.id}: {seen.item.text}"]
    if seen.text is not None:
        lines.append(f"written: {seen.text}")
    return draw_strip(seen.item.frames, seen.characters, seen.words, lines)


def said_and_written(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return id, text and translation of videos as a Markdown table."""
    lines = [("video", "said", "written"), ("---",) * 3, *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Return text that ends no cell and no line of a table, and is no Markdown itself."""
    return " ".join(re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", text).split())


def _code_use(quantizer: Quantizer) -> dict[str, np.ndarray]:
    """Return how often each code was used, 1 being an even share, and begin to count anew."""
    used, quantizer.recent_use = quantizer.recent_use, None
    if used is None or not float(used.sum()):
        return {}
    return {"code use": (used / used.mean()).cpu().numpy()}


def _word_use(model: SignLLM) -> dict[str, np.ndarray]:
    """Return the same of words, characters by themselves and words of several alike (all ranks)."""
    used, model.recent_words = model.recent_words, None
    if used is None or model.word_vectors is None:
        return {}
    used = reduce_sum(used)
    return {"word use": (used / used.mean()).cpu().numpy()}
