"""Fixtures: small generated videos, and the real files outside the checkout, which are optional."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from signllm.data.source_samples import Annotations, SourceSample
from signllm.data.video.decoding import encode_h264

REAL_DATA = Path(__file__).parents[2].parent / "shared" / "realdata"


@pytest.fixture(scope="session")
def realdata() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip(f"real sign language files are not there: {REAL_DATA}")
    return REAL_DATA


def drawn(frames: int, seed: int = 0, height: int = 48, width: int = 48) -> np.ndarray:
    """Return frames (T, H, W, 3) of a bright square that moves over a coloured background."""
    generator = np.random.default_rng(seed)
    video = np.empty((frames, height, width, 3), np.uint8)
    video[:] = generator.integers(20, 120, 3)
    for number, frame in enumerate(video):
        top, left = (number + seed) % (height - 8), (2 * number + 3 * seed) % (width - 8)
        frame[top : top + 8, left : left + 8] = 240
    return video


@pytest.fixture(scope="session")
def make_clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Annotations]:
    """Return a function that makes ``count`` mp4 videos with texts; equal arguments give equal files."""
    made: dict[tuple[int, int, str], Annotations] = {}

    def make(count: int, frames: int = 14, split: str = "train") -> Annotations:
        if (count, frames, split) not in made:
            folder = tmp_path_factory.mktemp(f"{split}{count}")
            clips = []
            for number in range(count):
                video = folder / f"clip{number}.mp4"
                video.write_bytes(encode_h264(drawn(frames + number % 5, seed=number), 25))
                clips.append(
                    SourceSample(
                        id=f"clip{number}", video=video, text=f"sentence {number}", split=split, signer="s"
                    )
                )
            made[count, frames, split] = Annotations(samples=tuple(clips))
        return made[count, frames, split]

    return make
