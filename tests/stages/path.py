"""The whole path in miniature: shards of a few drawn videos, three configurations, stage 3 on several ranks.

``python -m tests.stages.path FOLDER LLM NAME ...``, RANK and WORLD_SIZE set, fine-tunes FOLDER/pretrain into
FOLDER/NAME-of-W, for every NAME: a ZeRO file (``zero3``), or a configuration and a ZeRO file
(``prompted-zero3``); ``limited`` pretrains with a limit of frames, resumed in the middle of an epoch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from signllm.config import ComposeConfig, FinetuneConfig, PretrainConfig
from signllm.cra.composition import WordsConfig
from signllm.data.loading.mixture import open_mixture
from signllm.data.loading.pipeline import DataConfig
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, SourceSample
from signllm.data.video.frame_folder import encode_png
from signllm.distributed.local_ranks import leave_process_group
from signllm.distributed.ranks import start_distributed
from signllm.models.language_model.language_model import LanguageModelConfig, PromptTuningConfig
from signllm.models.sign_llm import SignLLMConfig
from signllm.recipes import Recipe, phoenix2014t
from signllm.stages.batches import StageContext
from signllm.stages.finetune import finetune
from signllm.stages.pretrain import pretrain
from signllm.training.engine import TrainingConfig
from tests import warm
from tests.models import parts

DATA = DataConfig(size=parts.SIZE, workers=0, cache_gb=0.1)
TRAINING = TrainingConfig(
    steps=4,
    batch_size=2,
    learning_rate=2e-4,
    log_every=1,
    validate_every=0,
    tensorboard=False,
    schedule="constant",
    deepspeed="zero0",
    timeout_s=300,
)
PRETRAIN = PretrainConfig(
    vq_sign=parts.vq_config(
        encoder={"subtract_video_mean": True},
        quantizer={"update": "ema", "kmeans_start": True, "codes": 8, "decay": 0.9},
    ),
    data=DATA,
    training=TRAINING,
)
COMPOSE = ComposeConfig(data=DATA, batch_size=2, words=WordsConfig(min_size=0, increment=2, longest_word=3))
LIMITED = replace(
    PRETRAIN,
    data=replace(DATA, max_frames=45, max_frames_per_batch=105),
    training=replace(TRAINING, steps=None, epochs=3, batch_size=4),
)
"""Its epochs have unequally many steps."""
LENGTHS = {"train": (41, 29, 37, 33, 45), "dev": (26, 31, 22)}


def finetune_config(llm: Path, **training: object) -> FinetuneConfig:
    language_model = LanguageModelConfig(
        path=str(llm), dtype="fp32", prompt="translate {language}", separator=":"
    )
    return FinetuneConfig(
        sign_llm=SignLLMConfig(language_model=language_model),
        data=DATA,
        training=replace(TRAINING, **({"steps": None, "epochs": 3, "learning_rate": 1e-3} | training)),
        frozen_epochs=2,
        frozen_learning_rate=1e-2,
    )


def prompted_config(llm: Path, **training: object) -> FinetuneConfig:
    """The same with a learnt prompt."""
    config = finetune_config(llm, **training)
    learnt = replace(config.sign_llm.language_model, prompt_tuning=PromptTuningConfig(tokens=3))
    return replace(config, sign_llm=replace(config.sign_llm, language_model=learnt))


def shown_config(llm: Path, **training: object) -> FinetuneConfig:
    """The same with TensorBoard, and two videos in it."""
    return finetune_config(llm, tensorboard=True, show=2, **training)


def selected_config(llm: Path, **training: object) -> FinetuneConfig:
    """The joint phase alone, its best checkpoint by a score of the translations of ``dev``."""
    config = finetune_config(llm, **({"keep_best": "chrf", "validate_every": 2, "keep": 1} | training))
    return replace(config, frozen_epochs=0, frozen_learning_rate=None)


def write_videos(
    folder: Path,
    language: str = "English",
    texts: Sequence[str] = parts.TEXTS,
    lengths: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Draw the videos of both splits as pictures and shard them."""
    clips = []
    for split, counts in (lengths or LENGTHS).items():
        for number, frames in enumerate(parts.frames_of(counts, seed=len(split))):
            video = folder / f"{split}{number}"
            video.mkdir(parents=True)
            for t, frame in enumerate(frames):
                (video / f"{t:04d}.png").write_bytes(
                    encode_png(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()))
                )
            text = texts[number % len(texts)]
            clips.append(
                SourceSample(id=f"{split}/{number}", video=video, text=text, split=split, language=language)
            )
    config = ShardConfig(encode="frames", size=parts.SIZE, show_progress=False)
    write_shards(Annotations(samples=tuple(clips), left_out=()), folder / "shards", config)
    return folder / "shards"


def stage_context(run: Path, shards: Path) -> StageContext:
    """Return the context of a stage in this process group."""
    return StageContext(run=run, stage="test", ranks=start_distributed(), dataset=open_mixture(shards))


def pretrain_limited(run: Path, shards: Path, stop: int | None = 2) -> None:
    """Pretrain with a limit of frames, stopped after ``stop`` steps and resumed."""
    for steps in (stop, None) if stop else (None,):
        training = replace(LIMITED.training, steps=steps)
        pretrain(replace(LIMITED, training=training), run=run, dataset=open_mixture(shards))


def on_ranks(folder: Path, llm: Path, *names: str, processes: int) -> list[Path]:
    """Train in ``processes`` processes, once for each of ``names``; return the runs."""
    done = warm.run_ranks("tests.stages.path", str(folder), str(llm), *names, ranks=processes)
    assert not any(done.codes), done.stderr[-4000:]
    return [folder / f"{name}-of-{processes}" for name in names]


def paper_recipe(backbone: Path, llm: Path) -> Recipe:
    """The paper's recipe: 16 bits, BatchNorm, augmentation, ZeRO, recomputation and beams as they are."""
    made = phoenix2014t()
    data = replace(made.pretrain.data, size=parts.SIZE, max_frames=40, workers=0)
    encoder = replace(made.pretrain.vq_sign.encoder, backbone=str(backbone), width=16)
    quantizer = replace(made.pretrain.vq_sign.quantizer, codes=8, kmeans_start=True)  # few videos collapse
    model = replace(made.finetune.sign_llm.language_model, path=str(llm))
    return Recipe(
        pretrain=replace(
            made.pretrain,
            vq_sign=replace(made.pretrain.vq_sign, encoder=encoder, quantizer=quantizer),
            data=data,
            training=_shorter(made.pretrain.training),
        ),
        compose=replace(made.compose, data=replace(made.compose.data, size=parts.SIZE, workers=0)),
        finetune=replace(
            made.finetune,
            sign_llm=replace(made.finetune.sign_llm, language_model=model),
            data=data,
            training=_shorter(made.finetune.training),
            generation=replace(made.finetune.generation, max_new_tokens=8),
        ),
    )


def _shorter(training: TrainingConfig) -> TrainingConfig:
    return replace(training, epochs=2, batch_size=2, learning_rate=1e-4, warmup_steps=1, log_every=1)


def paper_config(llm: Path, **training: object) -> FinetuneConfig:
    """Stage 3 of the paper's recipe; the encoder comes from the run before."""
    made = paper_recipe(llm, llm).finetune
    return replace(made, training=replace(made.training, **training))


CONFIGS = {
    "paper": paper_config,
    "": finetune_config,
    "prompted": prompted_config,
    "shown": shown_config,
    "selected": selected_config,
}


def main() -> None:
    folder, llm, *names = sys.argv[1:]
    for name in names:
        run = Path(folder) / f"{name}-of-{os.environ['WORLD_SIZE']}"
        if name == "limited":
            pretrain_limited(run, Path(folder) / "shards")
            continue
        kind, _, deepspeed = name.rpartition("-")
        config = CONFIGS[kind](Path(llm), deepspeed=deepspeed)
        finetune(
            config, run=run, init=Path(folder) / "pretrain", dataset=open_mixture(Path(folder) / "shards")
        )
    leave_process_group()


if __name__ == "__main__":
    main()
