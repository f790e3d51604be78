"""What bench_training trains: SignLLM with a LLaMA of any shape and random weights, on batches of any length.

The model is built by the project's own builders from a shipped recipe. Only the weights of the language model
are not read from a folder: they are drawn where they will lie, in the precision they will have, block by
block under ZeRO-3, so that 7 billion of them never exist twice. A seed and the parameter's place decide them,
whatever the version of ``transformers``: two models of one seed are equal.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from signllm.clip_geometry import CLIP_FRAMES, count_clips
from signllm.config import FinetuneConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.batch import Batch
from signllm.models.language_model.loading import DTYPES, zero3_loading
from signllm.models.sign_llm import SignLLM, build_sign_llm
from signllm.models.vq_sign.vq_sign import VQSignConfig
from signllm.recipes import find_recipe

RESNET_18 = {
    "embedding_size": 64,
    "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
}
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
WEIGHT_STD = 0.02
WORDS = 1024


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step works on: ``videos``, the mean ``frames`` of a video, and text tokens, end included.

    A video of T frames has floor((T - 13) / 4) + 1 characters.
    """

    videos: int
    frames: int
    text_tokens: int


@dataclass(frozen=True, kw_only=True)
class Size:
    """A recipe, the shape of its language model (fields of ``LlamaConfig``), and batches by name."""

    recipe: str
    llama: Mapping[str, Any]
    work: Mapping[str, Work]


SIZES = {
    "tiny": Size(
        recipe="demo",
        llama={
            "vocab_size": 128,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        work={
            "recipe": Work(videos=4, frames=37, text_tokens=6),
            "full": Work(videos=8, frames=61, text_tokens=12),
        },
    ),
    "demo": Size(
        recipe="demo",
        llama={
            "vocab_size": 512,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "tie_word_embeddings": True,
        },
        work={
            "recipe": Work(videos=16, frames=80, text_tokens=12),
            "full": Work(videos=64, frames=160, text_tokens=24),
        },
    ),
    "7b": Size(
        recipe="phoenix2014t",
        llama={
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
        work={
            "recipe": Work(videos=32, frames=116, text_tokens=30),
            "full": Work(videos=64, frames=300, text_tokens=128),
        },
    ),
}
"""``7b`` is LLaMA-7B. Its ``recipe``: phoenix2014t's batch size, lengths about the means of PHOENIX-2014T.
Its ``full``: the longest videos and texts that the recipe allows, to fill a GPU of 141 GB."""


def configured(size: Size, *, precision: str | None, checkpointing: bool | None) -> FinetuneConfig:
    """Return the size's recipe of stage 3 with its encoder; None keeps what the recipe says."""
    recipe = find_recipe(size.recipe)
    vq_sign, config = recipe.pretrain.vq_sign, recipe.finetune
    if vq_sign.encoder.backbone_config is None:  # its weights cannot be fetched here; their shape can be had
        vq_sign = replace(vq_sign, encoder=replace(vq_sign.encoder, backbone_config=RESNET_18))
    language_model = replace(config.sign_llm.language_model, attention="sdpa")
    if checkpointing is not None:
        language_model = replace(language_model, gradient_checkpointing=checkpointing)
    training = config.training
    if precision is not None:
        language_model = replace(language_model, dtype=precision)
        training = replace(training, precision=precision)
    sign_llm = replace(config.sign_llm, vq_sign=vq_sign, language_model=language_model)
    return replace(config, sign_llm=sign_llm, training=training)


def write_folder(folder: Path, size: Size) -> Path:
    """Write a language model's folder without weights: configuration, and a tokenizer of complete words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    special = [BEGIN, END, UNKNOWN]
    names = [*special, *(f"w{number}" for number in range(size.llama["vocab_size"] - len(special)))]
    tokenizer = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN
    ).save_pretrained(folder)
    LlamaConfig(
        **{"tie_word_embeddings": False} | dict(size.llama),
        num_key_value_heads=size.llama["num_attention_heads"],
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    ).save_pretrained(folder)
    return folder


def build(
    config: FinetuneConfig,
    folder: Path,
    device: torch.device,
    *,
    signs: str,
    deepspeed: Mapping[str, Any] | None,
    seed: int = 0,
) -> SignLLM:
    """Build the model of stage 3 on ``device``; ``deepspeed``: the engine's settings, None without one.

    ``signs``: "video" trains everything; with "characters" the encoder is frozen, as in the first phase.
    """
    assert config.sign_llm.vq_sign is not None
    language_model = replace(config.sign_llm.language_model, path=str(folder))
    torch.manual_seed(seed)
    with _drawn_weights(device, seed):
        model = build_sign_llm(
            replace(config.sign_llm, language_model=language_model),
            word_codebook(config.sign_llm.vq_sign),
            deepspeed=deepspeed,
        )
    if signs == "characters":
        model.vq_sign.requires_grad_(False)
        model.vq_sign.saved_when_frozen = True
    return model


@contextmanager
def _drawn_weights(device: torch.device, seed: int) -> Iterator[None]:
    """Let language models built inside draw their weights instead of reading them."""

    def load_model(
        path: str,
        kind: str,
        *,
        dtype: str,
        attention: str | None,
        quantize: str,
        deepspeed: Mapping[str, Any] | None,
    ) -> nn.Module:
        assert quantize == "none", "drawn weights are not quantised"
        from transformers import AutoConfig, AutoModelForCausalLM

        options = {} if attention is None else {"attn_implementation": attention}
        shape = AutoConfig.from_pretrained(path, local_files_only=True)
        with zero3_loading(deepspeed, dtype=dtype), device:
            model = AutoModelForCausalLM.from_config(shape, dtype=DTYPES[dtype], **options)
        for place, parameter in enumerate(model.parameters()):
            _draw(parameter, torch.Generator(device).manual_seed(seed * 100_003 + place))
        torch.manual_seed(seed)  # under ZeRO-3 the model above drew other numbers, or none
        frozen: nn.Module = model.requires_grad_(False)
        return frozen

    with patch("signllm.models.language_model.builder.load_model", load_model):
        yield


def _draw(parameter: Any, generator: torch.Generator) -> None:
    """Fill a parameter that may be cut by ZeRO-3: vectors (norms) with 1, matrices from N(0, 0.02^2)."""
    gathered: Any = nullcontext()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
    with gathered, torch.no_grad():
        if parameter.ndim < 2:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, WEIGHT_STD, generator=generator)


def word_codebook(config: VQSignConfig) -> WordCodebook:
    """Return words of two characters, drawn: about as many sign words as characters come out."""
    codes, rng = config.quantizer.codes, random.Random(0)
    pairs = [(a, b) for a in range(codes) for b in range(codes) if a != b]
    words = tuple(rng.sample(pairs, min(WORDS, len(pairs))))
    return WordCodebook(
        codes=codes,
        words=words,
        frequencies=(1,) * (codes + 1 + len(words)),
        alpha=2.0,
        codebook="drawn",
        segmentation="longest",
    )


def draw_batch(
    config: FinetuneConfig, size: Size, work: Work, *, signs: str, spread: float, number: int
) -> Batch:
    """Draw one batch on the CPU: recorded characters, or frames of noise.

    ``spread``: lengths are even from (1 - spread) to (1 + spread) times those of ``work``.
    """
    assert config.sign_llm.vq_sign is not None
    generator = torch.Generator().manual_seed(number)

    def lengths(mean: int, least: int) -> list[int]:
        factor = 1 + spread * (2 * torch.rand(work.videos, generator=generator) - 1)
        return [max(least, round(mean * one)) for one in factor.tolist()]

    frame_counts = lengths(work.frames, CLIP_FRAMES)
    words = size.llama["vocab_size"] - 3
    texts = [
        " ".join(f"w{word}" for word in torch.randint(words, (count - 1,), generator=generator).tolist())
        for count in lengths(work.text_tokens, 2)
    ]
    counts = torch.tensor([count_clips(frames) for frames in frame_counts])
    frames = characters = None
    if signs == "video":
        side = config.data.size
        shape = (sum(frame_counts), side, side, 3)
        frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    else:
        codes = config.sign_llm.vq_sign.quantizer.codes
        characters = torch.randint(codes, (int(counts.sum()),), generator=generator)
    return Batch(
        ids=[f"{number}-{place}" for place in range(work.videos)],
        texts=texts,
        languages=["English"] * work.videos,
        frames=frames,
        frame_counts=torch.tensor(frame_counts if signs == "video" else [0] * work.videos),
        characters=characters,
        character_counts=None if characters is None else counts,
        is_real=torch.ones(work.videos, dtype=torch.bool),
        positions=torch.arange(work.videos),
        epoch=0,
        seed=number,
    )
