"""Samples for TensorBoard at each validation: dev videos with tokens, and the use of codes and words.

A video is shown with its tokens and the text that is written for it. Use is counted during training since the
last validation. All ranks process the same few videos, because under ZeRO-3 a model computes on all ranks or
on none; rank 0 draws them. No random number is drawn, and nothing that is trained changes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import nn

from signllm.data.loading.batch import LoadedSample, collate
from signllm.data.loading.pipeline import DataConfig, VideoSource
from signllm.data.shards.index import Split
from signllm.data.token_strip import WordSpan, draw_strip
from signllm.distributed.collectives import reduce_sum
from signllm.models.language_model.generation import GenerationConfig
from signllm.models.sign_llm import SignLLM
from signllm.models.vq_sign.quantizer import Quantizer
from signllm.models.vq_sign.vq_sign import VQSign
from signllm.stages.batches import DEV, TRAIN, StageContext
from signllm.storage import storage_timeout_s, storage_wait_policy
from signllm.training.callbacks import Callback, Training, ValidationSamples

log = logging.getLogger(__name__)
LOAD_TIMEOUT_S = 60.0
"""Seconds that a rank waits for storage to load a video that is only shown; the other ranks wait for it."""


@dataclass(frozen=True)
class DecodedSample:
    """A video with the model's tokens; ``text`` is None if there is no language model."""

    item: LoadedSample
    characters: Sequence[int]
    words: Sequence[WordSpan] = ()
    text: str | None = None


class SampleLogger(Callback):
    """Shows samples of a model after each validation.

    Args:
        context: ranks and dataset; the first ``dev`` videos are shown, or ``train`` videos if there
            is no ``dev``.
        data: how videos are read; nothing is augmented.
        videos: number of videos.
        generation: how text is generated, here without sampling or beams; None in stage 1.
    """

    def __init__(
        self,
        context: StageContext,
        data: DataConfig,
        videos: int,
        generation: GenerationConfig | None = None,
    ) -> None:
        dataset = context.dataset
        self.split: Split = dataset.split(DEV if DEV in dataset.splits else TRAIN)
        plain = replace(data, cache_gb=0.0, max_frames_per_batch=None)
        self.source = VideoSource(self.split, plain, augment=False)
        self.videos, self.ranks = videos, context.ranks
        self.generation = generation and replace(generation, beams=1, temperature=None, n_best=1)

    def on_validation(self, training: Training, values: Mapping[str, float]) -> None:
        """Collect the samples of the validated model and show them."""
        training.show_samples(self.collect(training.model))

    def collect(self, model: nn.Module) -> ValidationSamples:
        """Return the samples of a model in evaluation mode (all ranks); rank 0 alone gets any."""
        vq_sign = model.vq_sign if isinstance(model, SignLLM) else model
        assert isinstance(vq_sign, VQSign)
        histograms = _take_code_use(vq_sign.quantizer)
        if isinstance(model, SignLLM):
            histograms |= _take_word_use(model)
        samples = self._decode(model)
        if self.ranks.rank != 0:
            return ValidationSamples({}, {}, {})
        pictures = {f"videos/{sample.item.id}": _draw_sample(sample) for sample in samples}
        rows = [(s.item.id, s.item.text, s.text) for s in samples if s.text is not None]
        texts = {"translations": format_translation_table(rows)} if rows else {}
        return ValidationSamples(histograms, pictures, texts, rows)

    def _decode(self, model: nn.Module) -> list[DecodedSample]:
        """Return the videos with the model's tokens (all ranks); none if a rank cannot read them."""
        items: list[LoadedSample] = []
        try:
            with storage_wait_policy(min(LOAD_TIMEOUT_S, storage_timeout_s())):
                for place in range(min(self.videos, len(self.source))):
                    items.append(self.source.load(place, seed=0, epoch=0, position=0))
        except Exception as error:  # a failure to show a video must not end the run
            log.warning("TensorBoard shows no videos of %s for this step: %s", self.split.name, error)
        count = min(self.videos, len(self.source))
        missing = torch.tensor(float(len(items) < count), device=self.ranks.device)
        if not count or float(reduce_sum(missing)):
            return []
        batch = collate(
            items, is_real=[True] * len(items), positions=np.arange(len(items)), epoch=0, seed=0
        ).to(self.ranks.device)
        if isinstance(model, SignLLM):
            generated = model.generate(batch, self.generation)
            samples = [
                DecodedSample(item, text.characters, _word_spans(text.words, text.slots), text.text)
                for item, text in zip(items, generated, strict=True)
            ]
        else:
            assert isinstance(model, VQSign)
            encoded = model.quantize(batch)
            parts = encoded.quantized.index.split(encoded.counts.tolist())
            samples = [DecodedSample(item, part.tolist()) for item, part in zip(items, parts, strict=True)]
        return [sample for sample in samples if sample.item.bad is None]


def _word_spans(words: Sequence[int], slots: Sequence[int]) -> list[WordSpan]:
    """Return the words as spans of a video's characters, named by number; a single s0 covers none."""
    spans, start = [], 0
    for slot, members in groupby(slots):
        stop = start + len(list(members))
        spans.append(WordSpan(f"w{words[slot]}", start, stop))
        start = stop
    return spans


def _draw_sample(sample: DecodedSample) -> np.ndarray:
    assert sample.item.frames is not None
    lines = [f"{sample.item.id}: {sample.item.text}"]
    if sample.text is not None:
        lines.append(f"hypothesis: {sample.text}")
    return draw_strip(sample.item.frames, sample.characters, sample.words, lines)


def format_translation_table(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return id, reference and hypothesis of videos as a Markdown table."""
    header = ("video", "reference", "hypothesis")
    lines = [header, ("---",) * 3, *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Return a text as one cell of a Markdown table, with Markdown characters escaped."""
    return " ".join(re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", text).split())


def _take_code_use(quantizer: Quantizer) -> dict[str, np.ndarray]:
    """Return how often each code was used (1 is an even share), and restart the count."""
    used, quantizer.recent_use = quantizer.recent_use, None
    if used is None or not float(used.sum()):
        return {}
    return {"code use": (used / used.mean()).cpu().numpy()}


def _take_word_use(model: SignLLM) -> dict[str, np.ndarray]:
    """Return how often each word was used, single characters included, and restart the count (all ranks)."""
    used, model.recent_words = model.recent_words, None
    if used is None or model.word_vectors is None:
        return {}
    used = reduce_sum(used)
    return {"word use": (used / used.mean()).cpu().numpy()}
