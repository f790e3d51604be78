"""The duration of translating one video, by parts: encoder, segmentation, prompt and text. An estimate.

It uses the roofline model of training steps. Writing a token reads every weight of the language model once,
for any video, so memory bandwidth limits it. Segmentation runs on the CPU and is timed on this machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from signllm.cluster.planning.meta_model import PROMPT_TOKENS, PassSize, batch_of
from signllm.cluster.planning.roofline import Machine, pass_seconds
from signllm.cluster.planning.setups import Project
from signllm.cluster.planning.simulation import META, SimulatedPass, simulate_pass
from signllm.cra.word_codebook import WordCodebook
from signllm.models.sign_llm import SignLLM

SEGMENTATIONS = 5
"""Number of timings, of which the shortest counts."""


@dataclass(frozen=True, kw_only=True)
class TranslationTime:
    """Seconds for one video on one GPU.

    Attributes:
        encoder: from video to characters.
        segmentation: from characters to words, on the CPU of this machine.
        prompt: reading prompt and sign words by the language model.
        token: writing one token of every beam.
        tokens: number of tokens written.
    """

    encoder: float
    segmentation: float
    prompt: float
    token: float
    tokens: int

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.encoder + self.segmentation + self.prompt + self.token * self.tokens

    @property
    def encoder_share(self) -> float:
        """Encoder and segmentation as a share of the total."""
        return (self.encoder + self.segmentation) / self.total


def plan_translation(project: Project, machine: Machine) -> TranslationTime:
    """Return the duration for one video of the project's length, decoded as its recipe says."""
    config = replace(project.config, training=replace(project.config.training, deepspeed="zero2"))
    model = project.model(config).eval()
    work = PassSize(videos=1, frames=project.frames, text_tokens=project.text_tokens)
    beams = config.generation.beams
    try:
        encoding, (characters, words) = _encoding(model, work, size=config.data.size)
        reading = _language_model(model, beams, PROMPT_TOKENS + words)
        writing = _language_model(model, beams, 1, read=PROMPT_TOKENS + words)
    finally:
        model.train()
    return TranslationTime(
        encoder=pass_seconds(encoding, machine),
        segmentation=_segmentation_s(model.words, characters),
        prompt=pass_seconds(reading, machine),
        token=pass_seconds(writing, machine),
        tokens=min(project.text_tokens, config.generation.max_new_tokens),
    )


def _encoding(model: SignLLM, work: PassSize, *, size: int) -> tuple[SimulatedPass, tuple[int, int]]:
    """Return the pass from video to projected words, and the numbers of characters and words."""
    counts: list[int] = []

    @torch.no_grad()
    def run() -> None:
        batch = batch_of(work, size=size, video=True)
        signs = model._signs(batch)
        segmentation = model.words.segment(signs.index, signs.counts)
        model._project(signs, segmentation)
        counts[:] = [len(signs.index), len(segmentation.words)]

    simulated = simulate_pass(model, run)
    return simulated, (counts[0], counts[1])


def _language_model(model: SignLLM, rows: int, places: int, *, read: int | None = None) -> SimulatedPass:
    """Return a pass of the language model over ``places`` positions of each row.

    Args:
        model: a model on the meta device.
        rows: number of rows.
        places: number of positions.
        read: number of positions that were read before; an encoder-decoder model then runs only its decoder.
    """
    inner: Any = model.language_model.model
    dtype = next(inner.parameters()).dtype

    @torch.no_grad()
    def run() -> None:
        if not inner.config.is_encoder_decoder:
            inner(
                inputs_embeds=torch.empty(rows, places, model.language_model.width, dtype=dtype, device=META)
            )
            return
        width = model.language_model.width
        if read is None:
            inner.get_encoder()(inputs_embeds=torch.empty(1, places, width, dtype=dtype, device=META))
            return
        states = torch.empty(rows, read, width, dtype=dtype, device=META)
        inner(encoder_outputs=(states,), decoder_input_ids=torch.zeros(rows, places, dtype=torch.int64))

    return simulate_pass(model, run)


def _segmentation_s(words: WordCodebook, characters: int) -> float:
    index = torch.arange(characters) % words.codes
    counts = torch.tensor([characters])
    taken = []
    for _ in range(SEGMENTATIONS):
        begun = time.perf_counter()
        words.segment(index, counts)
        taken.append(time.perf_counter() - begun)
    return min(taken)
