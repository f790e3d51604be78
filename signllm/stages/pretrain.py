"""Stage 1: VQ-Sign learns characters from video alone (paper: Adam, lr 0.01, 200 epochs).

All ranks call :func:`pretrain`, which resumes from the last checkpoint in the run folder. With
``training.steps`` 0 it only saves an untrained encoder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from signllm.config import PretrainConfig, load_config, open_run
from signllm.data.loading.mixture import Mixture
from signllm.data.loading.pipeline import VideoSource
from signllm.distributed.agreement import run_on_rank_zero
from signllm.distributed.ranks import start_distributed
from signllm.models.vq_sign.backbone import backbone_settings
from signllm.models.vq_sign.vq_sign import VQSign, build_vq_sign
from signllm.stages.alarms import AlarmMonitor
from signllm.stages.batches import TRAIN, StageContext, training_batches
from signllm.stages.dev_validation import make_loss_validator, require_dev_split
from signllm.stages.frame_rate import with_frame_rate
from signllm.stages.sample_logger import SampleLogger
from signllm.training.callbacks import AlarmLogger, Outcome
from signllm.training.checkpoint import TrainingState, last_checkpoint, save_checkpoint
from signllm.training.loop import fit
from signllm.training.standard_callbacks import standard_callbacks
from signllm.training.trackers import require_packages
from signllm.validation import to_plain

STAGE = "pretrain"


def pretrain(config: PretrainConfig, run: Path, dataset: Mixture) -> Outcome:
    """Train VQ-Sign on the ``train`` split of a dataset into ``run``.

    Raises:
        UsageError: there is no such split, the run folder belongs to another stage or has other settings, or
            the image backbone is missing.
    """
    ranks = start_distributed(timeout_s=config.training.timeout_s)
    require_packages(config.training.trackers, ranks)
    context = StageContext(run=run, stage=STAGE, ranks=ranks, dataset=dataset)
    require_dev_split(context, config.training)
    split = dataset.split(TRAIN)
    is_new = run_on_rank_zero(lambda: last_checkpoint(run) is None, ranks)
    recorded = None if is_new else load_config(run, PretrainConfig).data
    config = replace(config, data=with_frame_rate(config.data, split, recorded))
    source = VideoSource(split, config.data)
    settings, config = config, _with_backbone_shape(config, None if is_new else run)
    open_run(run, config, dataset.records(TRAIN))
    torch.manual_seed(config.training.seed)
    model = build_vq_sign(settings.vq_sign if is_new else config.vq_sign).to(ranks.device)
    if config.vq_sign.quantizer.kmeans_start and is_new:
        batches = training_batches(source, config.training, ranks)
        model.initialize_codebook(batch.to(ranks.device) for batch in batches)
    if config.training.steps == 0:
        run_on_rank_zero(lambda: _save_untrained(model, run), ranks)
        return Outcome(step=0)
    validate = make_loss_validator(context, config.data, config.training)
    callbacks = [
        *standard_callbacks(config.training, validate, settings=to_plain(config)),
        AlarmLogger(AlarmMonitor()),
    ]
    if config.training.tensorboard:
        callbacks.append(SampleLogger(context, config.data, config.training.show))
    return fit(
        model,
        training_batches(source, config.training, ranks),
        config=config.training,
        context=context,
        callbacks=callbacks,
    )


def _with_backbone_shape(config: PretrainConfig, begun: Path | None) -> PretrainConfig:
    """Return the configuration with the shape of the pretrained backbone, as recorded by a run."""
    encoder = config.vq_sign.encoder
    if encoder.backbone_config is not None:
        return config
    shape = load_config(begun, PretrainConfig).vq_sign.encoder.backbone_shape if begun else None
    encoder = replace(encoder, backbone_shape=shape or backbone_settings(encoder.backbone))
    return replace(config, vq_sign=replace(config.vq_sign, encoder=encoder))


def _save_untrained(model: VQSign, run: Path) -> None:
    """Save a checkpoint of the untrained model, unless there is one."""
    if last_checkpoint(run) is None:
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_checkpoint(run, TrainingState(stage=STAGE, step=0), weights, {}, keep=1)
