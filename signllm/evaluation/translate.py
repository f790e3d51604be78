"""Translate any video with a fine-tuned run: ``signllm.load(run).translate("clip.mp4").text``."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from signllm.config import FinetuneConfig, load_config
from signllm.data.batch import Batch, Item, collate
from signllm.data.video import decode
from signllm.data.video_error import VideoError
from signllm.errors import UsageError
from signllm.stages.finetuned import load_sign_llm

if TYPE_CHECKING:
    from signllm.models.sign_llm import SignLLM


@dataclass(frozen=True, kw_only=True)
class Translation:
    """What became of a video.

    Attributes:
        text: the sentence.
        characters: its codes, one for every 4 frames.
        words: the word ids that the language model read.
        seconds: decoding and translating, on the clock.
    """

    text: str
    characters: tuple[int, ...]
    words: tuple[int, ...]
    seconds: float


class Translator:
    """A fine-tuned run, ready to translate; made by :func:`load`.

    Args:
        model: in evaluation mode, on its device.
        config: of the run: frame size, frame limit, decoding.
    """

    def __init__(self, model: SignLLM, config: FinetuneConfig) -> None:
        self.model, self.config = model, config

    def translate(self, video: Path | str | np.ndarray, language: str | None = None) -> Translation:
        """Translate one video.

        Args:
            video: a video file, a folder of frame pictures, or frames uint8 (T, H, W, 3) in RGB.
            language: of the text, in English ("German"), for the prompt; by default that of training.

        Raises:
            UsageError: no such file, no readable video, or frames of another form.
        """
        begun = time.perf_counter()
        frames_THWC = self._frames(video)
        name = "frames" if isinstance(video, np.ndarray) else str(video)
        asked = language if language is not None else self.config.generation.language
        batch = _batch_of(frames_THWC, name, asked or "English")
        device = next(self.model.parameters()).device
        (written,) = self.model.generate(batch.to(device), self.config.generation)
        return Translation(
            text=written.text,
            characters=tuple(written.characters),
            words=tuple(written.words),
            seconds=time.perf_counter() - begun,
        )

    def _frames(self, video: Path | str | np.ndarray) -> np.ndarray:
        """Return frames (T, S, S, 3) as training sees them: scaled, cropped, at most ``max_frames``."""
        size, most = self.config.data.size, self.config.data.max_frames
        frames_THWC = _fitted(video, size) if isinstance(video, np.ndarray) else _decoded(Path(video), size)
        if len(frames_THWC) > most:
            frames_THWC = frames_THWC[np.linspace(0, len(frames_THWC) - 1, most).round().astype(int)]
        return frames_THWC


def load(run: Path | str, *, device: torch.device | str | None = None, llm: str | None = None) -> Translator:
    """Load a fine-tuned run, or an export of one.

    Args:
        run: its folder.
        device: where it computes; by default the first GPU if there is one.
        llm: folder of the language model that it was trained with, if it lies elsewhere here.

    Raises:
        UsageError: neither a run of stage 3 nor an export, of another version, no whole checkpoint, or no
            language model.
    """
    run = Path(run)
    config = load_config(run, FinetuneConfig)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Translator(load_sign_llm(run, llm=llm).to(chosen), config)


def _decoded(path: Path, size: int) -> np.ndarray:
    """Decode a file or a folder of frames."""
    remedy = "give a video file that FFmpeg can read, or a folder of frame pictures"
    if not path.exists():
        raise UsageError("there is no such video", where=path, remedy=remedy)
    try:
        return decode(path, size=size)
    except VideoError as error:
        raise UsageError(
            f"the video cannot be read: {error.what}", where=path, remedy=error.remedy or remedy
        ) from error
    except OSError as error:
        raise UsageError(f"the video cannot be read: {error.strerror}", where=path, remedy=remedy) from error


def _fitted(frames_THWC: np.ndarray, size: int) -> np.ndarray:
    """Scale and crop frames the way decoding does, by the same code: as numbered pictures."""
    if (
        frames_THWC.dtype != np.uint8
        or frames_THWC.ndim != 4
        or frames_THWC.shape[3] != 3
        or 0 in frames_THWC.shape
    ):
        raise UsageError(
            f"frames are {frames_THWC.dtype} of shape {frames_THWC.shape}",
            where="Translator.translate",
            remedy="give uint8 of shape (frames, height, width, 3), red first",
        )
    if frames_THWC.shape[1:3] == (size, size):
        return frames_THWC
    return decode(_pictures(frames_THWC), size=size)


def _pictures(frames_THWC: np.ndarray) -> Sequence[bytes]:
    """Return each frame as a lossless picture file."""
    from PIL import Image

    pictures = []
    for frame_HWC in frames_THWC:
        written = io.BytesIO()
        Image.fromarray(frame_HWC).save(written, format="PNG", compress_level=1)
        pictures.append(written.getvalue())
    return pictures


def _batch_of(frames_THWC: np.ndarray, name: str, language: str) -> Batch:
    """Return a batch of one video."""
    item = Item(id=name, text="", language=language, frames=np.ascontiguousarray(frames_THWC))
    return collate([item], is_real=[True], positions=np.zeros(1, np.int64), epoch=0, seed=0)
