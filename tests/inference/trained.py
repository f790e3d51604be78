"""A fine-tuned run with random weights, in the format of the stages, and shards of a few generated videos.

``python -m tests.inference.trained RUN SHARDS SPLIT`` evaluates, as one rank of ``WORLD_SIZE``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from signllm.config import FinetuneConfig, save_config
from signllm.data.loading.pipeline import DataConfig
from signllm.data.shards.writing import ShardConfig, shard
from signllm.data.video.decoding import encode_h264
from signllm.inference.evaluate import EvaluateConfig, evaluate
from signllm.models.language_model.language_model import (
    GenerationConfig,
    LanguageModelConfig,
    LoraConfig,
    PromptTuningConfig,
)
from signllm.models.projector import ProjectorConfig
from signllm.models.sign_llm import SignLLMConfig, build_sign_llm
from signllm.stages.trained_model import load_sign_llm
from signllm.training.checkpoint import TrainingState, save_checkpoint
from signllm.training.engine import TrainingConfig
from signllm.training.engine_state import saved_tensors, trainable_parameters
from tests.models import parts

LENGTHS = (41, 29, 37, 25, 33, 13, 57)
MAX_FRAMES = 45
ON_RANKS = EvaluateConfig(batch_size=3, shuffled=True)
"""Three batches of the seven videos, so that two ranks have different numbers of batches."""


def write_videos(folder: Path, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Path]:
    """Write one mp4 per video and a table of them; the texts use the vocabulary of the language model."""
    folder.mkdir(parents=True)
    paths, rows = {}, ["id\tvideo\ttext\tsplit\tlanguage"]
    for place, frames in enumerate(parts.frames_of(lengths)):
        path = folder / f"clip{place}.mp4"
        path.write_bytes(encode_h264(frames.permute(0, 2, 3, 1).numpy(), 25.0))
        paths[f"clip{place}"] = path
        rows.append(f"clip{place}\t{path.name}\t{parts.TEXTS[place % 4]}\ttest\tEnglish")
    (folder / "table.tsv").write_text("\n".join(rows) + "\n")
    return paths


def write_shards(folder: Path, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Path]:
    """Write those videos and their shards ``folder/shards``, and return the videos by id."""
    paths = write_videos(folder / "videos", lengths)
    shard("table", folder / "videos" / "table.tsv", folder / "shards", ShardConfig(encode="copy"))
    return paths


def write_run(
    run: Path,
    language_model: Path,
    *,
    seed: int = 0,
    lora: LoraConfig | None = None,
    prompt_tuning: PromptTuningConfig | None = None,
) -> Path:
    """Write a fine-tuned run with configuration, words and one checkpoint."""
    config = FinetuneConfig(
        sign_llm=SignLLMConfig(
            vq_sign=parts.vq_config(),
            projector=ProjectorConfig(hidden=12),
            language_model=LanguageModelConfig(
                path=str(language_model),
                dtype="fp32",
                prompt="translate {language}",
                separator=":",
                lora=lora,
                prompt_tuning=prompt_tuning,
            ),
        ),
        data=DataConfig(size=parts.SIZE, max_frames=MAX_FRAMES, workers=0),
        training=TrainingConfig(steps=1),
        generation=GenerationConfig(max_new_tokens=8, language="north"),
    )
    torch.manual_seed(seed)
    encoder = parts.vq_sign(config.sign_llm.vq_sign)
    words = parts.word_codebook(encoder)
    model = build_sign_llm(config.sign_llm, words)
    with torch.no_grad():
        # Different videos must give different texts: the codebook consists of the videos' own vectors,
        # and the sign tokens are scaled to the magnitude of the prompt.
        batch = parts.batch_of(lengths=LENGTHS)
        vectors, _ = model.vq_sign.encoder(batch.frames, batch.frame_counts)
        codebook = model.vq_sign.quantizer.codebook
        codebook.copy_(vectors[torch.linspace(0, len(vectors) - 1, len(codebook)).long()])
        for parameter in model.projector.parameters():
            parameter.mul_(20)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()  # adapters are initialised with zero
    save_config(run, config)
    words.save(run)
    weights = trainable_parameters(model) | saved_tensors(model)
    state = TrainingState(stage="finetune", step=1)
    save_checkpoint(run, state, {name: w.detach().clone() for name, w in weights.items()}, {}, keep=1)
    return run


def save_sensitive_language_model(folder: Path) -> Path:
    """Write the tests' language model with larger weights, so that its output depends on its input."""
    from transformers import AutoModelForCausalLM

    parts.save_language_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(20)
    model.save_pretrained(folder)
    return folder


def decode_sample(shards: Path, split: str, name: str) -> np.ndarray:
    """Return all frames of a sample of the shards, in their original size."""
    from signllm.data.shards.index import ShardIndex
    from signllm.data.video.stored_frames import decode_stored_frames

    videos = ShardIndex(shards).split(split)
    return decode_stored_frames(videos.read([sample.id for sample in videos.samples].index(name)))


def main() -> None:
    run, shards, split, *zero_file = sys.argv[1:]
    if zero_file:
        frozen = list(load_sign_llm(Path(run), zero_file=zero_file[0]).language_model.model.parameters())
        world = torch.distributed.get_world_size()
        assert all(p.ds_tensor.numel() == -(-p.ds_numel // world) for p in frozen)
    config = replace(ON_RANKS, deepspeed=zero_file[0] if zero_file else None)
    evaluate(Path(run), Path(shards), split, config)


if __name__ == "__main__":
    main()
