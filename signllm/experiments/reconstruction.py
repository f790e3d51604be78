"""Reconstruction of frames from characters: how much information about the signing do the tokens contain?

A small decoder is trained to predict, from a character and its neighbours alone, the middle frame of the
character's clip of 13 frames. Its PSNR on another split is compared with two controls: the mean picture of
the training videos, which needs no character, and the same decoder with the characters of another video.
What the decoder cannot reconstruct (the signer's face and clothes, for instance) is not available to the
language model.

    PSNR = -10 log10(mean squared error), for pixel values between 0 and 1
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from signllm.atomic_files import atomic_file
from signllm.clip_geometry import middle_frame
from signllm.errors import UsageError
from signllm.experiments.encoded_split import EncodedSplit, load_or_encode_split
from signllm.metrics.hypotheses import draw_derangement
from signllm.progress import progress
from signllm.reporting.video_frames import load_video_frames
from signllm.validation import PositiveFloat, PositiveInt, validated

NEIGHBOURS = 1
"""Number of characters on each side of the one whose middle frame is predicted."""
PICTURE_VIDEOS, PICTURE_CHARACTERS = 3, 8
"""Size of the figure: the number of videos, and of characters of each."""


@validated
class ReconstructionConfig:
    """How the decoder is trained.

    Attributes:
        side: height and width of the predicted pictures in pixels, a multiple of 8.
        videos: largest number of videos of each split, evenly spaced.
        steps: number of steps of Adam.
        batch_size: number of pictures in a step.
        learning_rate: initial learning rate of Adam.
        width: number of channels of the decoder's last hidden layer.
        seed: random seed of the weights and batches.
    """

    side: Annotated[int, Field(ge=8, multiple_of=8)] = 48
    videos: PositiveInt = 200
    steps: PositiveInt = 1000
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 3e-3
    width: PositiveInt = 16
    seed: int = 0


class FrameDecoder(nn.Module):
    """Predicts a frame from a few characters: embeddings, a linear layer, then three upsampling convolutions.

    Args:
        codes: K, the number of codes; index K means that the video has ended.
        config: size of the decoder.
    """

    def __init__(self, codes: int, config: ReconstructionConfig) -> None:
        super().__init__()
        width, self.smallest = config.width, config.side // 8
        self.embedding = nn.Embedding(codes + 1, 64)
        self.project = nn.Linear(64 * (2 * NEIGHBOURS + 1), 4 * width * self.smallest**2)
        self.upsample = nn.Sequential(
            *_upsampling(4 * width, 4 * width),
            *_upsampling(4 * width, 2 * width),
            *_upsampling(2 * width, width),
        )
        self.to_rgb = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, characters: Tensor) -> Tensor:
        """Predict pictures (n, 3, S, S) between 0 and 1 from characters (n, 3); K where a video has ended."""
        projected = self.project(self.embedding(characters).flatten(1))
        maps = projected.unflatten(1, (-1, self.smallest, self.smallest))
        return self.to_rgb(self.upsample(maps)).sigmoid()


def _upsampling(channels: int, channels_out: int) -> tuple[nn.Module, ...]:
    """Return layers that double height and width."""
    return nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels_out, 3, padding=1), nn.GELU()


@dataclass(frozen=True)
class CharacterFrames:
    """Frames with the characters that they are predicted from.

    Attributes:
        frames: (n, 3, S, S) uint8, the middle frame of each character's clip.
        characters: (n, 3) each character with its neighbours.
        counts: number of characters of each video, in order.
    """

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
        out: PNG file with original and predicted frames of some videos, and both controls; None draws
            nothing.
        config: settings of the decoder; by default ``ReconstructionConfig()``.
        split: name of the split to measure on.

    Returns:
        ``psnr`` in dB, ``psnr_mean_picture`` and ``psnr_other_video`` of the controls, and counts.

    Raises:
        UsageError: There is no such run or split, or a video cannot be read.
    """
    config = config or ReconstructionConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    splits = [load_or_encode_split(run, shards, name) for name in ("train", split)]
    train, held_out = (_load_character_frames(encoded, config) for encoded in splits)
    torch.manual_seed(config.seed)
    decoder = FrameDecoder(splits[0].words.codes, config).to(device)
    _train(decoder, train, config, device)
    mean = train.frames.float().mean(0, keepdim=True) / 255
    predicted = _predict(decoder, held_out.characters, device)
    from_other_video = _predict(decoder, _exchange_videos(held_out), device)
    if out is not None:
        _draw_comparison(held_out, (predicted, from_other_video, mean.expand_as(predicted)), out)
    return {
        "split": split,
        "psnr": _psnr(predicted, held_out.frames),
        "psnr_other_video": _psnr(from_other_video, held_out.frames),
        "psnr_mean_picture": _psnr(mean, held_out.frames),
        "pictures": len(held_out.frames),
        "training_pictures": len(train.frames),
        "parameters": sum(weight.numel() for weight in decoder.parameters()),
    }


def _load_character_frames(encoded: EncodedSplit, config: ReconstructionConfig) -> CharacterFrames:
    """Decode the middle frame of every character of ``config.videos`` evenly spaced videos."""
    outside, frames, characters, counts = encoded.words.codes, [], [], []
    chosen = np.unique(np.linspace(0, len(encoded.places) - 1, config.videos).round().astype(int))
    with progress(len(chosen), f"reading {encoded.split.name}", unit="videos") as bar:
        for place in chosen:
            sequence = encoded.sequences[place]
            video = load_video_frames(
                encoded.split, encoded.places[place], most=encoded.max_frames, fps=encoded.fps
            )
            middle = middle_frame(np.arange(len(sequence)))
            middle_frames = video.frames[np.minimum(middle, len(video.frames) - 1)]
            pixels = torch.from_numpy(middle_frames).movedim(3, 1).float()
            small = functional.adaptive_avg_pool2d(pixels, config.side)
            frames.append(small.round().to(torch.uint8))
            padded = functional.pad(torch.from_numpy(sequence), (NEIGHBOURS, NEIGHBOURS), value=outside)
            characters.append(padded.unfold(0, 2 * NEIGHBOURS + 1, 1))
            counts.append(len(sequence))
            bar.advance()
    return CharacterFrames(torch.cat(frames), torch.cat(characters), tuple(counts))


def _train(
    decoder: FrameDecoder, data: CharacterFrames, config: ReconstructionConfig, device: torch.device
) -> None:
    """Minimize the mean squared error with Adam and a cosine learning rate schedule."""
    optimizer = torch.optim.Adam(decoder.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    generator = torch.Generator().manual_seed(config.seed)
    with progress(config.steps, "training the decoder", unit="steps") as bar:
        for _ in range(config.steps):
            chosen = torch.randint(len(data.frames), (config.batch_size,), generator=generator)
            target = data.frames[chosen].to(device).float() / 255
            loss = functional.mse_loss(decoder(data.characters[chosen].to(device)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.advance()


@torch.no_grad()
def _predict(decoder: FrameDecoder, characters: Tensor, device: torch.device) -> Tensor:
    return torch.cat([decoder(part.to(device)).cpu() for part in characters.split(256)])


def _exchange_videos(data: CharacterFrames) -> Tensor:
    """Return, for each picture, the characters of another video at the same relative position."""
    parts = data.characters.split(list(data.counts))
    if len(parts) < 2:
        raise UsageError(
            "the control needs a second video, and the split has only one",
            remedy="use a split of two or more videos",
        )
    partners = draw_derangement(len(parts))
    places = [
        torch.linspace(0, len(parts[partner]) - 1, count).round().long()
        for partner, count in zip(partners, data.counts, strict=True)
    ]
    return torch.cat([parts[partner][place] for partner, place in zip(partners, places, strict=True)])


def _psnr(predicted: Tensor, frames: Tensor) -> float:
    """Return the PSNR in dB of predicted pictures (n, 3, S, S), between 0 and 1, and uint8 frames."""
    error = functional.mse_loss(predicted.expand(frames.shape), frames.float() / 255)
    return -10 * math.log10(max(float(error), 1e-12))


def _draw_comparison(data: CharacterFrames, rows: Sequence[Tensor], out: Path) -> None:
    """Draw, for some videos, the original frames above the predicted ones and the controls, with labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = ("video", "from its characters", "from another video's", "mean picture")
    starts = [0, *itertools.accumulate(data.counts)]
    videos = np.unique(np.linspace(0, len(data.counts) - 1, PICTURE_VIDEOS).round().astype(int))
    figure = Figure(figsize=(1.5 + PICTURE_CHARACTERS, len(videos) * len(names)), dpi=96)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(videos) * len(names), PICTURE_CHARACTERS, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for number, video in enumerate(videos):
        chosen = np.linspace(starts[video], starts[video + 1] - 1, PICTURE_CHARACTERS).round().astype(int)
        for row, (name, source) in enumerate(zip(names, (data.frames / 255, *rows), strict=True)):
            line = axes[number * len(names) + row]
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
            for axis, place in zip(line, chosen, strict=True):
                axis.imshow(source[place].permute(1, 2, 0).numpy(), interpolation="nearest")
    figure.subplots_adjust(left=0.18, right=0.99, top=0.99, bottom=0.01, wspace=0.03, hspace=0.03)
    with atomic_file(out) as unfinished:
        figure.savefig(unfinished, format="png")
