"""Small models, batches and a language model with a few words, for the tests of the networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from signllm.cra.word_codebook import WordCodebook, fingerprint
from signllm.data.loading.batch import Batch
from signllm.models.vq_sign.context_predictor import ContextPredictorConfig
from signllm.models.vq_sign.quantizer import QuantizerConfig
from signllm.models.vq_sign.visual_encoder import VisualEncoderConfig
from signllm.models.vq_sign.vq_sign import VQSign, VQSignConfig, build_vq_sign

SIZE = 32
LENGTHS = (41, 29, 37, 25)
TEXTS = ("rain in the north", "sun tomorrow", "wind in the south", "rain tomorrow")
WORDS = (
    "rain",
    "sun",
    "wind",
    "snow",
    "in",
    "the",
    "north",
    "south",
    "tomorrow",
    "today",
    "translate",
    "English",
    ":",
)
TINY_RESNET = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}


def encoder_config(**changes: Any) -> VisualEncoderConfig:
    return VisualEncoderConfig(
        **{"backbone_config": TINY_RESNET, "width": 8, "hidden": 8, "frame_size": SIZE} | changes
    )


def vq_config(
    *, encoder: dict[str, Any] | None = None, quantizer: dict[str, Any] | None = None, **predictor: Any
) -> VQSignConfig:
    return VQSignConfig(
        encoder=encoder_config(**(encoder or {})),
        quantizer=QuantizerConfig(**{"codes": 12} | (quantizer or {})),
        predictor=ContextPredictorConfig(**predictor),
    )


def vq_sign(config: VQSignConfig | None = None) -> VQSign:
    torch.manual_seed(0)
    return build_vq_sign(config or vq_config())


def frames_of(lengths: Sequence[int], *, seed: int = 0) -> list[torch.Tensor]:
    """Return videos of a bright square that moves on a path, and on a background, of the video's own."""
    generator = torch.Generator().manual_seed(seed)
    videos = []
    for length in lengths:
        video = (
            torch.randint(0, 80, (1, 3, SIZE, SIZE), generator=generator).expand(length, -1, -1, -1).clone()
        )
        corner = torch.randint(0, SIZE - 8, (length // 5 + 1, 2), generator=generator).repeat_interleave(
            5, dim=0
        )[:length]
        for t, (y, x) in enumerate(corner.tolist()):
            video[t, :, y : y + 8, x : x + 8] = 240
        videos.append(video.to(torch.uint8))
    return videos


def batch_of(
    *,
    lengths: Sequence[int] = LENGTHS,
    rank: int = 0,
    world: int = 1,
    real: Sequence[bool] | None = None,
    epoch: int = 0,
) -> Batch:
    """Return the part of ``rank`` of a global batch: the videos rank, rank + world, ..."""
    local = list(range(rank, len(lengths), world))
    videos = frames_of(lengths)
    real = real or [True] * len(lengths)
    return Batch(
        ids=[f"v{i}" for i in local],
        texts=[TEXTS[i % len(TEXTS)] for i in local],
        languages=["English"] * len(local),
        frames=torch.cat([videos[i] for i in local]),
        frame_counts=torch.tensor([lengths[i] for i in local]),
        is_real=torch.tensor([real[i] for i in local]),
        positions=torch.tensor(local),
        epoch=epoch,
        seed=7,
    )


def with_characters(batch: Batch, model: VQSign) -> Batch:
    """Return the batch with recorded characters instead of frames."""
    from dataclasses import replace

    characters, counts = model.eval().encode(batch.frames, batch.frame_counts)
    return replace(batch, frames=None, characters=characters, character_counts=counts)


def word_codebook(model: VQSign) -> WordCodebook:
    """Return a codebook in which every pair of characters is a word, so that composed words occur."""
    codes = model.config.quantizer.codes
    words = tuple((a, b) for a in range(codes) for b in range(codes) if a != b)
    return WordCodebook(
        codes=codes,
        words=words,
        frequencies=(1,) * (codes + 1 + len(words)),
        alpha=2.0,
        codebook=fingerprint(model.quantizer.codebook),
        segmentation="longest",
    )


def save_language_model(folder: Path, *, seed: int = 0, width: int = 16) -> Path:
    """Write a random LLaMA of two layers with a tokenizer of whole words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<unk>"]
    tokenizer = Tokenizer(
        WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(special) + len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.3,  # large enough that what goes in matters to what comes out
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
