"""Stage 1: VQ-Sign learns characters from video alone (design 2.1; paper: Adam, lr 0.01, 200 epochs).

All ranks call :func:`pretrain`; the run folder continues by itself from its last checkpoint. With
``training.steps`` 0 it is left as it starts: an encoder that never learnt.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from signllm.config import PretrainConfig, load_config, open_run
from signllm.data.mixture import read_dataset_records
from signllm.data.pipeline import VideoSource
from signllm.models.backbone import backbone_settings
from signllm.models.vq_sign import VQSign, build_vq_sign
from signllm.stages.agreement import once
from signllm.stages.alarms import Watch
from signllm.stages.batches import TRAIN, open_split, training_batches
from signllm.stages.frame_rate import with_frame_rate
from signllm.stages.held_out import held_out_losses
from signllm.stages.looks import Looking
from signllm.training.checkpoint import TrainingState, last_checkpoint, save
from signllm.training.engine import start_distributed
from signllm.training.loop import Outcome, fit

STAGE = "pretrain"


def pretrain(config: PretrainConfig, run: Path, shards: Path | str) -> Outcome:
    """Train VQ-Sign on the ``train`` split of ``shards`` into ``run``.

    Raises:
        UsageError: no such shards, a run of another stage or with other settings, a backbone that is not
            there.
    """
    ranks = start_distributed(timeout_s=config.training.timeout_s)
    split = open_split(shards)
    begins = once(lambda: last_checkpoint(run) is None, ranks)
    begun = None if begins else load_config(run, PretrainConfig).data
    config = replace(config, data=with_frame_rate(config.data, split, begun))
    source = VideoSource(split, config.data)
    given, config = config, _with_shape(config, None if begins else run)
    open_run(run, config, read_dataset_records(shards, TRAIN))
    torch.manual_seed(config.training.seed)
    model = build_vq_sign(given.vq_sign if begins else config.vq_sign).to(ranks.device)
    if config.vq_sign.quantizer.kmeans_start and begins:
        batches = training_batches(source, config.training, ranks)
        model.initialize_codebook(batch.to(ranks.device) for batch in batches)
    if config.training.steps == 0:
        once(lambda: _save_start(model, run), ranks)
        return Outcome(step=0)
    return fit(
        model,
        training_batches(source, config.training, ranks),
        config=config.training,
        run=run,
        stage=STAGE,
        validate=held_out_losses(shards, config.data, config.training, ranks),
        watch=Watch(),
        look=Looking(shards, config.data, config.training.show, ranks),
    )


def _with_shape(config: PretrainConfig, begun: Path | None) -> PretrainConfig:
    """Return the configuration with the shape of a pretrained backbone, as a run that has begun says it."""
    encoder = config.vq_sign.encoder
    if encoder.backbone_config is not None:
        return config
    shape = load_config(begun, PretrainConfig).vq_sign.encoder.backbone_shape if begun else None
    encoder = replace(encoder, backbone_shape=shape or backbone_settings(encoder.backbone))
    return replace(config, vq_sign=replace(config.vq_sign, encoder=encoder))


def _save_start(model: VQSign, run: Path) -> None:
    """Write a checkpoint of what nothing was learnt in yet, unless it is there."""
    if last_checkpoint(run) is None:
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save(run, TrainingState(stage=STAGE, step=0), weights, {}, keep=1)
