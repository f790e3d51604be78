"""SignLLM on torch's meta device: it runs the code of the real model on shapes, without any weights.

Its parts come from :mod:`signllm.cluster.planning.model_tensors`. The tokenizer is replaced by a prompt of a
typical number of tokens. :mod:`signllm.cluster.planning.simulation` records what one step of this model would
compute and allocate.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from signllm.clip_geometry import count_clips
from signllm.cluster.planning.simulation import META, SimulatedPass, simulate_pass
from signllm.config import FinetuneConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.batch import Batch
from signllm.models.language_model.builder import select_language_model_class
from signllm.models.language_model.language_model import LanguageModel, LanguageModelConfig
from signllm.models.language_model.loading import recompute_activations
from signllm.models.sign_llm import SignLLM

PROMPT_TOKENS = 16
"""Number of tokens of prompt and separator; most tokenizers produce about as many for ours."""


@dataclass(frozen=True, kw_only=True)
class PassSize:
    """The input of one rank in a forward pass.

    Attributes:
        videos: number of videos.
        frames: frames of each video.
        text_tokens: tokens of each reference, including the end.
    """

    videos: int
    frames: int
    text_tokens: int

    def __str__(self) -> str:
        return f"{self.videos} videos of {self.frames} frames and {self.text_tokens} text tokens"


class _Tokens:
    """A tokenizer and prompt with known lengths: a text has as many tokens as letters."""

    eos_token_id = 0
    all_special_tokens = ()
    end = (0,)

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def context_tokens(self, language: str) -> tuple[list[int], list[int]]:
        return [0] * (PROMPT_TOKENS - 1), [0]

    def tokens(self, text: str) -> list[int]:
        return [0] * len(text)


def build_meta_model(parts: Mapping[str, nn.Module], config: FinetuneConfig, words: WordCodebook) -> SignLLM:
    """Assemble parts without weights as the real model does, in the precision of the training.

    Args:
        parts: parts on the meta device, by their names in SignLLM.
        config: configuration of stage 3 with an encoder.
        words: words that segment the characters.
    """
    model = SignLLM.__new__(SignLLM)
    nn.Module.__init__(model)
    model.config, model.words = config.sign_llm, words
    for name in ("vq_sign", "word_vectors", "projector"):
        setattr(model, name, parts.get(name))
    inner: Any = parts["language_model"]
    model.language_model = _language_model(config.sign_llm.language_model, inner)
    with META:
        text = torch.empty(config.sign_llm.mmd_text_tokens, model.language_model.width)
        model.register_buffer("text_embeddings", text, persistent=False)
    if config.training.precision == "bf16":
        for p in model.parameters():
            p.data = p.data.to(torch.bfloat16)
    return model.train()


def _language_model(config: LanguageModelConfig, parts: Mapping[str, Any]) -> LanguageModel:
    inner: Any = parts["model"]
    if config.gradient_checkpointing:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of transformers' own names
            recompute_activations(inner)
    tokens: Any = _Tokens()
    learnt = parts["virtual_tokens"] if "virtual_tokens" in parts else None
    kind = select_language_model_class(is_encoder_decoder=inner.config.is_encoder_decoder)
    return kind(config, inner, tokens, tokens, virtual_tokens=learnt)


def simulate_step(model: SignLLM, work: PassSize, *, size: int, video: bool) -> SimulatedPass:
    """Simulate a rank's forward and backward pass.

    Args:
        model: a model on the meta device.
        work: size of the pass.
        size: height and width of the frames in pixels.
        video: whether frames are encoded; otherwise the characters were recorded.
    """
    return simulate_pass(model, lambda: model(batch_of(work, size=size, video=video))["loss"])


def batch_of(work: PassSize, *, size: int, video: bool) -> Batch:
    """Return a batch without values in which all videos, texts and prompts have the same length."""
    counts = torch.full((work.videos,), work.frames, dtype=torch.int64)
    frames: Tensor | None = None
    characters = count_clips(counts)
    if video:
        shape = (work.videos * work.frames, size, size, 3)
        frames = torch.empty(shape, dtype=torch.uint8, device=META).permute(0, 3, 1, 2)
    return Batch(
        ids=[str(place) for place in range(work.videos)],
        texts=["x" * (work.text_tokens - 1)] * work.videos,
        languages=["German"] * work.videos,
        frames=frames,
        frame_counts=counts if video else torch.zeros_like(counts),
        characters=None if video else torch.arange(int(characters.sum())) % 2,
        character_counts=None if video else characters,
        is_real=torch.ones(work.videos, dtype=torch.bool),
        positions=torch.arange(work.videos),
        epoch=0,
        seed=0,
    )


def with_checkpointing(config: FinetuneConfig, *, on: bool) -> FinetuneConfig:
    """Return the configuration with the language model's activations recomputed (``on``) or kept."""
    model = replace(config.sign_llm.language_model, gradient_checkpointing=on)
    return replace(config, sign_llm=replace(config.sign_llm, language_model=model))
