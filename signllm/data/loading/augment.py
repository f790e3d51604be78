"""Random augmentation of videos: tempo, a shifted crop, brightness, contrast, color and mirroring.

The parameters are drawn once per video, so that its frames do not flicker. They are a pure function of (seed,
epoch, position): resuming, or another number of ranks, changes nothing. Augmentation is off by default; the
paper does not state any.
"""

from __future__ import annotations

import numpy as np

from signllm.data.loading.order import hash_integers
from signllm.validation import FractionBelowOne, validated

_STREAM, _TEMPO_STREAM = 2, 7


@validated
class AugmentConfig:
    """How strongly each property of a video may change; 0 switches a change off.

    Args:
        shift: side of the decoded square divided by the side of the crop, minus 1; the position of the crop
            is random. 0.14 decodes 256 pixels for a crop of 224. In evaluation the crop is the center, so
            signers appear as large as in training.
        brightness: largest change of the mean value, as a share of 255.
        contrast: largest change of the factor by which values are spread around the middle grey.
        colour: largest change of the factor of each of the three color channels.
        tempo: largest change of the number of frames, as a share of it; frames are dropped or repeated.
        mirror: share of the videos that are mirrored; handedness is part of a sign, so use it with care.
    """

    shift: FractionBelowOne = 0.0
    brightness: FractionBelowOne = 0.0
    contrast: FractionBelowOne = 0.0
    colour: FractionBelowOne = 0.0
    tempo: FractionBelowOne = 0.0
    mirror: FractionBelowOne = 0.0

    def compute_decoded_size(self, size: int) -> int:
        """Return the side in pixels of the square to decode for a crop of side ``size``."""
        return round(size * (1 + self.shift))

    def count_most_frames(self, frames: np.ndarray) -> np.ndarray:
        """Return the number of frames of videos at the slowest tempo, int64 (n,).

        Args:
            frames: number of frames of each video, int (n,).
        """
        return np.ceil(np.asarray(frames) * (1 + self.tempo)).astype(np.int64)


def draw_frame_numbers(
    frames: int, config: AugmentConfig, *, most: int, seed: int, epoch: int, position: int
) -> np.ndarray:
    """Return the numbers of the frames that a video shows at a random tempo, int64 (T,), evenly spread.

    Args:
        frames: number of frames of the video.
        config: range of the tempo.
        most: largest number of frames to return.
        seed: random seed of the run.
        epoch: number of the epoch, from 0.
        position: position of the sample in the epoch.
    """
    count = frames
    if config.tempo:
        uniform = hash_integers(seed, epoch, position, _TEMPO_STREAM, count=1)[0] / 2**64
        count = max(1, round(frames * (1 + config.tempo * (2 * float(uniform) - 1))))
    return np.linspace(0, frames - 1, min(count, most)).round().astype(np.int64)


def augment_frames(
    frames: np.ndarray, config: AugmentConfig, *, size: int, seed: int, epoch: int, position: int
) -> np.ndarray:
    """Return a crop at a random position with random brightness, contrast, color and mirroring.

    Args:
        frames: uint8 (T, S, S, 3) with S = ``config.compute_decoded_size(size)``.
        config: range of each change.
        size: side of the crop in pixels.
        seed: random seed of the run.
        epoch: number of the epoch, from 0.
        position: position of the sample in the epoch.

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
    table = _color_table(
        1 + config.contrast * signed[0], 255 * config.brightness * signed[1], 1 + config.colour * signed[2:]
    )
    return np.stack([table[channel][cropped_THWC[..., channel]] for channel in range(3)], axis=-1)


def crop_center(frames: np.ndarray, size: int) -> np.ndarray:
    """Return the crop of side ``size`` at the center of frames (T, S, S, 3), as evaluation uses it."""
    before = (frames.shape[1] - size) // 2
    return frames[:, before : before + size, before : before + size]


def _color_table(contrast: float, offset: float, factors: np.ndarray) -> np.ndarray:
    """Return the new value of each old value for each channel, uint8 (3, 256).

    Args:
        contrast: factor by which values are spread around the middle grey.
        offset: value that is added to all channels.
        factors: factor of each channel, (3,).
    """
    values = (np.arange(256)[None] * factors[:, None] - 127.5) * contrast + 127.5 + offset
    return np.clip(values.round(), 0, 255).astype(np.uint8)
