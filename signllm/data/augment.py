"""Augmentation drawn once per video, so that it never flickers: tempo, a shifted crop, light and colour.

What is drawn is a pure function of (seed, epoch, position): resuming or changing the number of ranks changes
nothing. Off by default; not stated in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from signllm.data.order import hash_integers
from signllm.errors import UsageError

_STREAM, _TEMPO_STREAM = 2, 7


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far each property may be moved; 0 is not at all.

    Args:
        shift: side of the decoded square over that of the crop, minus 1; the crop's place is drawn. 0.14 is
            256 for 224. At rest it is the crop in the middle: signers are as large as in training.
        brightness: largest change of the mean, as a share of 255.
        contrast: largest change of the factor around the middle grey.
        colour: largest change of the factor of each of the three channels.
        tempo: largest change of the number of frames, as a share of it; frames are left out or shown twice.
        mirror: share of the videos shown mirrored; handedness is part of a sign, so think twice.
    """

    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0
    tempo: float = 0.0
    mirror: float = 0.0

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` outside 0 to 1."""
        for name, value in vars(self).items():
            if not 0 <= value < 1:
                raise UsageError(f"augment.{name} = {value}", remedy="at least 0 (off) and below 1")

    def compute_decoded_size(self, size: int) -> int:
        """Return the side of the square to decode for a crop of ``size``."""
        return round(size * (1 + self.shift))

    def count_most_frames(self, frames: np.ndarray) -> np.ndarray:
        """Return the most frames that the slowest tempo makes of a number of frames."""
        return np.ceil(np.asarray(frames) * (1 + self.tempo)).astype(np.int64)


def draw_frame_numbers(
    frames: int, config: AugmentConfig, *, most: int, seed: int, epoch: int, position: int
) -> np.ndarray:
    """Return which frames of a video are shown, int64 (T,): at the drawn tempo, ``most`` at most, evenly.

    Args:
        frames: that the video has.
        config: how far to go.
        most: frames beyond which a video is thinned.
        seed: of the run.
        epoch: from 0.
        position: place in the epoch.
    """
    wanted = frames
    if config.tempo:
        uniform = hash_integers(seed, epoch, position, _TEMPO_STREAM, count=1)[0] / 2**64
        wanted = max(1, round(frames * (1 + config.tempo * (2 * float(uniform) - 1))))
    return np.linspace(0, frames - 1, min(wanted, most)).round().astype(np.int64)


def augment_frames(
    frames: np.ndarray, config: AugmentConfig, *, size: int, seed: int, epoch: int, position: int
) -> np.ndarray:
    """Return the crop of ``size`` with the drawn place and colours.

    Args:
        frames: uint8 (T, S, S, 3) with S = ``config.compute_decoded_size(size)``.
        config: how far to go.
        size: side of the crop.
        seed: of the run.
        epoch: from 0.
        position: place in the epoch.

    Returns:
        uint8 (T, size, size, 3).
    """
    uniform = hash_integers(seed, epoch, position, _STREAM, count=8).astype(np.float64) / 2**64
    room = frames.shape[1] - size
    top, left = (int(share * (room + 1)) for share in uniform[:2])
    cropped_THWC = frames[:, top : top + size, left : left + size]
    if uniform[7] < config.mirror:
        cropped_THWC = cropped_THWC[:, :, ::-1]
    if not (config.brightness or config.contrast or config.colour):
        return cropped_THWC
    signed = 2 * uniform[2:7] - 1
    table = _colour_table(
        1 + config.contrast * signed[0], 255 * config.brightness * signed[1], 1 + config.colour * signed[2:]
    )
    return np.stack([table[channel][cropped_THWC[..., channel]] for channel in range(3)], axis=-1)


def crop_center(frames: np.ndarray, size: int) -> np.ndarray:
    """Return the crop of ``size`` in the middle of frames (T, S, S, 3): what a model at rest is shown."""
    before = (frames.shape[1] - size) // 2
    return frames[:, before : before + size, before : before + size]


def _colour_table(contrast: float, offset: float, factors: np.ndarray) -> np.ndarray:
    """Return uint8 (3, 256): the new value of each old one, per channel."""
    values = (np.arange(256)[None] * factors[:, None] - 127.5) * contrast + 127.5 + offset
    return np.clip(values.round(), 0, 255).astype(np.uint8)
