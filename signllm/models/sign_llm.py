"""SignLLM: the full model of stage 3, from video over sign words to text (paper section 3.4).

Its loss is L_ft = L_VQ + 0.5 L_MMD + 1.0 L_sim. It trains the encoder, the codebook, the context predictor,
the word vectors and the projector (and adapters, if configured) with a frozen language model. A batch may
also contain recorded characters instead of frames. Then the encoder does not run, the code vectors are
constants and L_VQ is absent; only the parts after the characters are trained, which is about a hundred times
as fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from signllm.cra.word_codebook import Segmentation, WordCodebook
from signllm.distributed.collectives import gather_counts, gather_rows, reduce_sum, world_and_rank
from signllm.errors import UsageError
from signllm.kernels.mmd import mmd
from signllm.kernels.mmd_bandwidths import median_bandwidths
from signllm.models.language_model.builder import build_language_model
from signllm.models.language_model.generation import Candidate, GenerationConfig, sampling_seed
from signllm.models.language_model.language_model import (
    LanguageModelConfig,
    LoraConfig,
    PromptTuningConfig,
    ReferenceScores,
)
from signllm.models.operation_counts import projector_operations, work_counts
from signllm.models.projector import Projector, ProjectorConfig
from signllm.models.vq_sign.quantizer import row_weights
from signllm.models.vq_sign.vq_sign import VQSign, VQSignConfig, build_vq_sign
from signllm.models.word_vectors import WordVectors
from signllm.validation import NonNegativeFloat, PositiveInt, validated

if TYPE_CHECKING:
    from signllm.data.loading.batch import Batch

__all__ = [
    "GeneratedTranslation",
    "GenerationConfig",
    "LanguageModelConfig",
    "LoraConfig",
    "PromptTuningConfig",
    "SignLLM",
    "SignLLMConfig",
    "build_sign_llm",
]


@validated
class SignLLMConfig:
    """Configuration of the model of stage 3.

    Attributes:
        vq_sign: configuration of VQ-Sign; None until ``finetune`` copies it from the run it starts from.
        projector: configuration of the projector.
        language_model: configuration of the frozen language model.
        mmd_weight: weight of L_MMD (paper: 0.5).
        sim_weight: weight of L_sim (paper: 1.0).
        vq_weight: weight of L_VQ (paper: 1).
        mmd_text_tokens: number of text embeddings that L_MMD compares with, evenly spaced over the vocabulary
            (not stated in the paper).
    """

    vq_sign: VQSignConfig | None = None
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    language_model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    mmd_weight: NonNegativeFloat = 0.5
    sim_weight: NonNegativeFloat = 1.0
    vq_weight: NonNegativeFloat = 1.0
    mmd_text_tokens: PositiveInt = 2048


@dataclass(frozen=True)
class GeneratedTranslation:
    """The translation of one video, and the tokens it was generated from.

    Attributes:
        candidates: the n best texts, best first.
        characters: the N characters of the video.
        words: ids of its M sign words.
        slots: for each of the N characters, the index in ``words`` of its word.
    """

    candidates: tuple[Candidate, ...]
    characters: list[int]
    words: list[int]
    slots: list[int]

    @property
    def text(self) -> str:
        """The best of the candidate texts."""
        return self.candidates[0].text


@dataclass(frozen=True)
class _Signs:
    """The characters of a batch, from video or as they were recorded.

    Attributes:
        vectors: (n, D) packed straight-through vectors.
        index: (n,) their codes.
        counts: (B,) number of characters of each video.
        losses: losses and metrics of VQ-Sign; empty for recorded characters and without gradients.
        operations: floating-point operations of VQ-Sign in training mode.
    """

    vectors: Tensor
    index: Tensor
    counts: Tensor
    losses: dict[str, Tensor]
    operations: float = 0.0


class SignLLM(nn.Module):
    """The full model of stage 3; see the docstring of this module.

    Args:
        vq_sign: VQ-Sign of stage 1. Without codes (``quantizer.update`` is "none") the projector receives its
            continuous vectors, each as a word of its own: the ablation without vector quantization.
        words: word codebook of stage 2; it must be composed for the same number of codes.
        config: configuration of the parts and weights of the losses.
        deepspeed: settings of the DeepSpeed engine; with ZeRO-3 the language model is partitioned as it is
            loaded.

    Attributes:
        recent_words: float32 (V,), how often this rank has read each word in training since the attribute was
            last set to None. It is logged as the use of the words.
    """

    recent_words: Tensor | None = None
    text_embeddings: Tensor

    def __init__(
        self,
        vq_sign: VQSign,
        words: WordCodebook,
        config: SignLLMConfig,
        *,
        deepspeed: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if words.codes != vq_sign.config.quantizer.codes:
            raise UsageError(
                f"the words are made of {words.codes} characters, not {vq_sign.config.quantizer.codes}",
                remedy="compose the words again, from this encoder: signllm compose",
            )
        self.config, self.words = config, words
        self.vq_sign = vq_sign
        self.vq_sign.quantizer.keeps_codes = True
        width = vq_sign.config.encoder.width
        self.language_model = build_language_model(config.language_model, deepspeed=deepspeed)
        self.word_vectors = WordVectors(words, width) if vq_sign.quantizer.has_codes else None
        self.projector = Projector(config.projector, width, self.language_model.width)
        text = self.language_model.sample_embeddings(config.mmd_text_tokens)
        self.register_buffer("text_embeddings", text, persistent=False)
        if config.projector.match_scale:
            self.projector.scale_to(float(text.square().mean().sqrt()))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return this rank's shares of the losses and the metrics (see :mod:`signllm.models`).

        The keys are ``loss``, ``l_sim``, ``l_mmd``, the losses and metrics of VQ-Sign if the batch has
        frames, and the metrics of the words. Training mode adds the counts of
        :func:`~signllm.models.operation_counts.work_counts`. Evaluation mode adds two metrics:

        - ``mmd_fixed``: the unbiased estimate of the MMD (``unbiased`` of :func:`signllm.kernels.mmd`). Its
          bandwidths depend on the text embeddings only, so values from different steps are comparable; its
          mean is 0 if signs and text are equally distributed.
        - ``l_sim_shuffled``: L_sim when each video is paired with another video's sentence, if the batch has
          these sentences.
        """
        signs = self._signs(batch)
        segmentation = self._segment(signs)
        words, characters = self._project(signs, segmentation)
        scored = self.language_model(words, segmentation.counts, batch.texts, batch.languages)
        l_sim, accounts = self._l_sim(scored, batch)
        l_mmd = self._l_mmd(words, characters, segmentation, signs, batch)
        loss = self.config.sim_weight * l_sim + self.config.mmd_weight * l_mmd
        if signs.losses:
            loss = loss + self.config.vq_weight * signs.losses["l_vq"]
        shares = {
            "l_sim": l_sim,
            "l_mmd": l_mmd,
            **signs.losses,
            **accounts,
            **self._word_metrics(segmentation, batch),
        }
        if self.training:
            self._count_words(segmentation)
            shares |= self._counts(batch, signs, len(words) + len(characters), scored)
        else:
            shares["mmd_fixed"] = self._mmd(words, characters, segmentation, signs, batch, fixed=True)
            if batch.other_texts is not None:
                others = self.language_model(words, segmentation.counts, batch.other_texts, batch.languages)
                shares["l_sim_shuffled"], _ = self._l_sim(others, batch)
        return {"loss": loss, **{name: value.detach() for name, value in shares.items()}}

    @torch.no_grad()
    def generate(
        self, batch: Batch, generation: GenerationConfig | None = None
    ) -> list[GeneratedTranslation]:
        """Translate every video of a batch, including the videos that only fill it up.

        With ZeRO-3 every rank must call this, and equally often.
        """
        signs = self._signs(batch)
        segmentation = self._segment(signs)
        words, _ = self._project(signs, segmentation)
        generation = generation or GenerationConfig()
        word_ids = [part.tolist() for part in segmentation.words.split(segmentation.counts.tolist())]
        seeds = [sampling_seed(ids, generation.seed) for ids in word_ids]
        candidates = self.language_model.generate_candidates(
            words, segmentation.counts, batch.languages, generation, seeds
        )
        characters = [part.tolist() for part in signs.index.split(signs.counts.tolist())]
        slots = [(part - part[0]).tolist() for part in segmentation.slot.split(signs.counts.tolist())]
        return [
            GeneratedTranslation(*parts)
            for parts in zip(candidates, characters, word_ids, slots, strict=True)
        ]

    def _signs(self, batch: Batch) -> _Signs:
        """Return the characters of a batch: encoded from its frames, or as they were recorded."""
        if batch.frames is None:
            return self._recorded_signs(batch)
        encoded = self.vq_sign.quantize(batch)
        vectors, index = encoded.quantized.vectors, encoded.quantized.index
        if not torch.is_grad_enabled():
            return _Signs(vectors, index, encoded.counts, {})
        operations = self.vq_sign.operations(encoded, batch) if self.training else 0.0
        return _Signs(vectors, index, encoded.counts, self.vq_sign.losses(encoded, batch), operations)

    def _recorded_signs(self, batch: Batch) -> _Signs:
        """Return recorded characters with their codes as vectors, without gradient."""
        assert batch.characters is not None
        assert batch.character_counts is not None
        quantized = self.vq_sign.quantizer(batch.characters, batch.character_counts)
        return _Signs(quantized.vectors, quantized.index, batch.character_counts, {})

    def _segment(self, signs: _Signs) -> Segmentation:
        """Segment the characters into words; without codes, every vector is a word of its own."""
        if self.word_vectors is None:
            return Segmentation.one_word_per_token(signs.counts)
        return self.words.segment(signs.index, signs.counts)

    def _project(self, signs: _Signs, segmentation: Segmentation) -> tuple[Tensor, Tensor]:
        """Return projected words (M, E) and characters (n, E); both go through one call of the projector."""
        if self.word_vectors is None:
            projected = self.projector(signs.vectors)
            return projected, projected
        words = self.word_vectors(signs.vectors, signs.index, segmentation)
        projected = self.projector(torch.cat([words, signs.vectors.to(words.dtype)]))
        return projected[: len(words)], projected[len(words) :]

    def _l_sim(self, scored: ReferenceScores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this rank's shares of L_sim and of the number of text tokens.

        L_sim is the mean cross-entropy over the text tokens of the real videos of the global batch.
        """
        real_B = batch.is_real.float()
        total = reduce_sum((scored.tokens * real_B).sum()).clamp(min=1.0)
        return (scored.losses * real_B).sum() / total, {"text_tokens": (scored.tokens * real_B).sum()}

    def _counts(self, batch: Batch, signs: _Signs, rows: int, scored: ReferenceScores) -> dict[str, Tensor]:
        """Return the work counts of this rank's forward and backward pass.

        ``rows`` is the number of words and characters that went through the projector.
        """
        operations = signs.operations + projector_operations(self.projector, rows) + scored.operations
        frames = 0 if batch.frames is None else len(batch.frames)
        return work_counts(
            frames=frames, clips=len(signs.index), tokens=sum(scored.places), operations=operations
        )

    def _count_words(self, segmentation: Segmentation) -> None:
        """Add the words of this rank's batch to ``recent_words``."""
        if self.recent_words is None:
            self.recent_words = torch.zeros(self.words.size, device=segmentation.words.device)
        self.recent_words.index_add_(0, segmentation.words, torch.ones_like(segmentation.words).float())

    def _l_mmd(
        self, words: Tensor, characters: Tensor, segmentation: Segmentation, signs: _Signs, batch: Batch
    ) -> Tensor:
        """Return this rank's share of L_MMD between the projected signs of all ranks and text embeddings.

        Every rank computes the same value; its share is 1 / world_size of it. L_MMD is 0 if its weight is 0.
        """
        if self.config.mmd_weight == 0.0:
            return words.new_zeros((), dtype=torch.float32)
        return self._mmd(words, characters, segmentation, signs, batch)

    def _mmd(
        self,
        words: Tensor,
        characters: Tensor,
        segmentation: Segmentation,
        signs: _Signs,
        batch: Batch,
        *,
        fixed: bool = False,
    ) -> Tensor:
        """Return this rank's share of the MMD; ``fixed`` selects the unbiased estimate with fixed bandwidths.

        Each projected word and each projected character has the weight 1; those of videos that only fill up
        the batch have the weight 0. The fixed bandwidths depend on the text embeddings only. All occurrences
        of a character have equal rows, and so have all occurrences of a word with the same share of the
        "slowing down" token. Therefore L_MMD is computed from one row of each group of equal rows.
        """
        has_groups = self.word_vectors is not None and not fixed  # the unbiased estimate needs every row
        slow_bits = segmentation.slow_weight.view(torch.int32).long()  # equal floats have equal bits
        word_groups = (segmentation.words << 32) + slow_bits
        local_B3 = torch.stack([segmentation.counts, signs.counts, batch.is_real.long()], dim=1)
        word_counts, character_counts, is_real = gather_counts(local_B3).unbind(dim=1)
        if not bool(is_real.any()):
            return words.new_zeros((), dtype=torch.float32)
        rows, weights, groups = [], [], []
        for vectors, group, counts in (
            (words, word_groups, word_counts),
            (characters, -1 - signs.index, character_counts),
        ):
            rows.append(gather_rows(vectors.float(), counts))
            if has_groups:
                groups.append(gather_rows(group, counts))
            weights.append(row_weights(counts, is_real))
        value = mmd(
            torch.cat(rows),
            self.text_embeddings,
            bandwidths=self._text_bandwidths if fixed else None,
            weights_x=torch.cat(weights),
            groups_x=torch.cat(groups) if has_groups else None,
            unbiased=fixed,
        )
        return value / world_and_rank()[0]

    @cached_property
    def _text_bandwidths(self) -> list[float]:
        """Bandwidths that depend on the text embeddings only, so MMDs of different steps are comparable."""
        text = self.text_embeddings.float()
        return median_bandwidths(text, text)

    def _word_metrics(self, segmentation: Segmentation, batch: Batch) -> dict[str, Tensor]:
        """Return this rank's shares of two metrics.

        ``covered`` is the share of characters in words of two or more characters; ``words`` is the mean
        number of sign words per video.
        """
        composed = self.words.in_composed_words(segmentation).float()
        words_B = segmentation.counts * batch.is_real
        video = torch.repeat_interleave(
            torch.arange(len(words_B), device=composed.device), segmentation.counts
        )
        weight = batch.is_real.float()[video[segmentation.slot]]
        characters, videos = (
            reduce_sum(weight.sum()).clamp(min=1.0),
            reduce_sum(batch.is_real.float().sum()).clamp(min=1.0),
        )
        return {"covered": (composed * weight).sum() / characters, "words": words_B.sum() / videos}


def build_sign_llm(
    config: SignLLMConfig, words: WordCodebook, *, deepspeed: Mapping[str, Any] | None = None
) -> SignLLM:
    """Build SignLLM, including VQ-Sign, from its configuration.

    VQ-Sign has random weights; the caller loads those of a checkpoint.

    Args:
        config: configuration of the model.
        words: word codebook of stage 2.
        deepspeed: settings of the DeepSpeed engine; with ZeRO-3 the language model is partitioned as it is
            loaded.

    Raises:
        UsageError: the configuration has no ``vq_sign``, there is no language model, or the words are
            composed for another number of codes.
    """
    if config.vq_sign is None:
        raise UsageError(
            "sign_llm.vq_sign is not given", remedy="start from a run: signllm finetune --init RUN"
        )
    return SignLLM(build_vq_sign(config.vq_sign), words, config, deepspeed=deepspeed)
