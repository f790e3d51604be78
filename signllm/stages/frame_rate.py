"""The frame rate at which a run reads every video, chosen once and recorded in its ``config.json``.

The encoder's clips have 13 frames, so the same movement at twice the rate would give other characters. A run
therefore resamples every video to one rate: in training, in evaluation and in translation.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from signllm.data.loading.pipeline import DataConfig
from signllm.data.shards.index import Split
from signllm.data.video.frame_rate import choose_common_rate

_SLOWEST, _FASTEST = 1, 240
_ALIKE = 0.01
"""Rates whose ratio differs from 1 by at most this share count as equal, for example 29.97 and 30."""

log = logging.getLogger(__name__)


def with_frame_rate(data: DataConfig, split: Split, begun: DataConfig | None) -> DataConfig:
    """Return the settings with the rate at which the run reads videos.

    Args:
        data: settings of the run; a rate in them is kept.
        split: training videos, whose most common rate is used otherwise.
        begun: settings that a run has recorded, None for a new run. An older run without a rate continues
            without.
    """
    if data.fps is not None or not len(split):
        return data
    if begun is not None:
        return replace(data, fps=begun.fps)
    rates = split.samples.fps
    fps = choose_common_rate(split.samples.frames / rates, rates)
    if not _SLOWEST <= fps <= _FASTEST:
        log.warning(
            "the training videos state %g frames per second, which is implausible, so none is resampled\n"
            "  remedy: shard them again, or give --data.fps",
            fps,
        )
        return data
    others = int((np.abs(rates / fps - 1) > _ALIKE).sum())
    if others:
        log.info(
            "the training videos have %g to %g frames per second; this run reads all at %g (data.fps), which "
            "%d of %d are resampled to",
            *(rates.min(), rates.max(), fps, others, len(rates)),
        )
    return replace(data, fps=fps)


def warn_if_no_frame_rate(data: DataConfig) -> None:
    """Log a warning if a run, which must be an older one, has recorded no frame rate."""
    if data.fps is None:
        log.warning(
            "this run recorded no frame rate, so every video is read at its own rate: at another rate than "
            "that of the training videos, the same signs become other characters\n"
            "  remedy: train again, or write the rate of the training videos as data.fps into its config.json"
        )
