"""Video out of characters: how much of what is signed do the discrete tokens hold?

A small decoder is trained to draw, from a character and its neighbours alone, the middle frame of the 13 that
the character stands for. Its PSNR on another split is set beside two controls: the mean picture of the
training videos, which needs no character, and the same decoder fed the characters of another video.
What it cannot draw (the signer's face and clothes, unless codes name them) the language model cannot see.

    PSNR = -10 log10 of the mean squared error of pictures between 0 and 1
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from signllm.atomic_files import atomic_file
from signllm.clip_geometry import middle_frame
from signllm.errors import UsageError
from signllm.evaluation.hypotheses import deranged
from signllm.evaluation.report.frames import film_of
from signllm.inspection.reading import Reading, read_characters
from signllm.progress import progress

NEIGHBOURS = 1
"""Characters before and after the one whose middle frame is drawn."""
SHOWN_VIDEOS, SHOWN_MOMENTS = 3, 8


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """How the decoder is trained.

    Attributes:
        side: of the drawn pictures in pixels, a multiple of 8.
        videos: at most so many of each split, evenly spread.
        steps: of Adam.
        batch_size: pictures of a step.
        learning_rate: of Adam.
        width: channels of the decoder's smallest layer.
        seed: of weights and batches.
    """

    side: int = 48
    videos: int = 200
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 3e-3
    width: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("side", "videos", "steps", "batch_size", "width"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", remedy="give 1 or more")
        if self.side % 8:
            raise UsageError(f"side is {self.side}", remedy="give a multiple of 8")


class FrameDecoder(nn.Module):
    """Draws a frame from a few characters: embeddings, then three times twice the size.

    Args:
        codes: K, characters that there are.
        config: its size.
    """

    def __init__(self, codes: int, config: ReconstructionConfig) -> None:
        super().__init__()
        width, self.smallest = config.width, config.side // 8
        self.embedding = nn.Embedding(codes + 1, 64)
        self.spread = nn.Linear(64 * (2 * NEIGHBOURS + 1), 4 * width * self.smallest**2)
        self.grow = nn.Sequential(
            *_twice(4 * width, 4 * width), *_twice(4 * width, 2 * width), *_twice(2 * width, width)
        )
        self.draw = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, characters: Tensor) -> Tensor:
        """Draw (n, 3, S, S) between 0 and 1 from (n, 3) characters; K where a video has ended."""
        spread = self.spread(self.embedding(characters).flatten(1))
        return self.draw(self.grow(spread.unflatten(1, (-1, self.smallest, self.smallest)))).sigmoid()


def _twice(channels: int, grown: int) -> tuple[nn.Module, ...]:
    return nn.Upsample(scale_factor=2), nn.Conv2d(channels, grown, 3, padding=1), nn.GELU()


@dataclass(frozen=True)
class Pictures:
    """Middle frames uint8 (n, 3, S, S), their characters (n, 3), and how many each video has."""

    frames: Tensor
    characters: Tensor
    counts: tuple[int, ...]


def reconstruct(
    run: Path,
    shards: Path | str,
    out: Path | None = None,
    config: ReconstructionConfig | None = None,
    *,
    split: str = "dev",
) -> dict[str, Any]:
    """Train a decoder on the ``train`` split of a run's characters and measure it on another split.

    Args:
        run: a pretrained and composed run, or a fine-tuned one.
        shards: folder or address of the shards.
        out: PNG file: for some videos moments of the original, what was drawn, and both controls.
        config: of the decoder.
        split: to measure on.

    Returns:
        ``psnr`` in dB, of the controls ``psnr_mean_picture`` and ``psnr_other_video``, and counts.

    Raises:
        UsageError: no such run or split, or a video that cannot be read.
    """
    config = config or ReconstructionConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    readings = [read_characters(run, shards, name) for name in ("train", split)]
    train, held_out = (_pictures(reading, config) for reading in readings)
    torch.manual_seed(config.seed)
    decoder = FrameDecoder(readings[0].words.codes, config).to(device)
    _train(decoder, train, config, device)
    mean = train.frames.float().mean(0, keepdim=True) / 255
    drawn = _drawn(decoder, held_out.characters, device)
    others = _drawn(decoder, _of_another_video(held_out), device)
    if out is not None:
        _draw(held_out, (drawn, others, mean.expand_as(drawn)), out)
    return {
        "split": split,
        "psnr": _psnr(drawn, held_out.frames),
        "psnr_other_video": _psnr(others, held_out.frames),
        "psnr_mean_picture": _psnr(mean, held_out.frames),
        "pictures": len(held_out.frames),
        "training_pictures": len(train.frames),
        "parameters": sum(weight.numel() for weight in decoder.parameters()),
    }


def _pictures(reading: Reading, config: ReconstructionConfig) -> Pictures:
    """Decode the middle frame of every character of some videos."""
    outside, frames, characters, counts = reading.words.codes, [], [], []
    chosen = np.unique(np.linspace(0, len(reading.places) - 1, config.videos).round().astype(int))
    with progress(len(chosen), f"reading {reading.split.name}", unit="videos") as bar:
        for place in chosen:
            sequence = reading.sequences[place]
            film = film_of(reading.split, reading.places[place], most=reading.max_frames, fps=reading.fps)
            middle = middle_frame(np.arange(len(sequence)))
            seen = torch.from_numpy(film.frames[np.minimum(middle, len(film.frames) - 1)]).movedim(3, 1)
            small = functional.adaptive_avg_pool2d(seen.float(), config.side)
            frames.append(small.round().to(torch.uint8))
            padded = functional.pad(torch.from_numpy(sequence), (NEIGHBOURS, NEIGHBOURS), value=outside)
            characters.append(padded.unfold(0, 2 * NEIGHBOURS + 1, 1))
            counts.append(len(sequence))
            bar.advance()
    return Pictures(torch.cat(frames), torch.cat(characters), tuple(counts))


def _train(
    decoder: FrameDecoder, pictures: Pictures, config: ReconstructionConfig, device: torch.device
) -> None:
    """Least squares by Adam, with a learning rate that falls to nothing."""
    optimizer = torch.optim.Adam(decoder.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    generator = torch.Generator().manual_seed(config.seed)
    with progress(config.steps, "training the decoder", unit="steps") as bar:
        for _ in range(config.steps):
            chosen = torch.randint(len(pictures.frames), (config.batch_size,), generator=generator)
            wanted = pictures.frames[chosen].to(device).float() / 255
            loss = functional.mse_loss(decoder(pictures.characters[chosen].to(device)), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.advance()


@torch.no_grad()
def _drawn(decoder: FrameDecoder, characters: Tensor, device: torch.device) -> Tensor:
    return torch.cat([decoder(part.to(device)).cpu() for part in characters.split(256)])


def _of_another_video(pictures: Pictures) -> Tensor:
    """Return for each picture the characters of another video at the same share of its length."""
    parts = pictures.characters.split(list(pictures.counts))
    if len(parts) < 2:
        raise UsageError("one video cannot be exchanged with another", remedy="use a split of two and more")
    given = deranged(len(parts))
    places = [
        torch.linspace(0, len(parts[other]) - 1, count).round().long()
        for other, count in zip(given, pictures.counts, strict=True)
    ]
    return torch.cat([parts[other][place] for other, place in zip(given, places, strict=True)])


def _psnr(drawn: Tensor, frames: Tensor) -> float:
    """Return the PSNR in dB of pictures (n, 3, S, S) between 0 and 1 to frames uint8."""
    error = functional.mse_loss(drawn.expand(frames.shape), frames.float() / 255)
    return -10 * math.log10(max(float(error), 1e-12))


def _draw(pictures: Pictures, rows: Sequence[Tensor], out: Path) -> None:
    """Draw for some videos the original above what was drawn, as a grid that a name explains."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = ("video", "from its characters", "another video's", "mean picture")
    starts = [0, *itertools.accumulate(pictures.counts)]
    shown = np.unique(np.linspace(0, len(pictures.counts) - 1, SHOWN_VIDEOS).round().astype(int))
    figure = Figure(figsize=(1.5 + SHOWN_MOMENTS, len(shown) * len(names)), dpi=96)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown) * len(names), SHOWN_MOMENTS, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for at, video in enumerate(shown):
        moments = np.linspace(starts[video], starts[video + 1] - 1, SHOWN_MOMENTS).round().astype(int)
        for row, (name, source) in enumerate(zip(names, (pictures.frames / 255, *rows), strict=True)):
            line = axes[at * len(names) + row]
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
            for axis, moment in zip(line, moments, strict=True):
                axis.imshow(source[moment].permute(1, 2, 0).numpy(), interpolation="nearest")
    figure.subplots_adjust(left=0.18, right=0.99, top=0.99, bottom=0.01, wspace=0.03, hspace=0.03)
    with atomic_file(out) as unfinished:
        figure.savefig(unfinished, format="png")
