"""Video to vectors z: a backbone on every frame once, then two temporal Conv3D (paper section 3.2).

Kernel (5,3,3), stride (2,1,1), no temporal padding, twice: receptive field 13 frames, stride 4. That equals
the paper's clips of 13 frames with gap 4 encoded one by one, without computing a frame 3.25 times. Videos are
packed, never padded: each output gathers its own five frames, so a video's encoding cannot depend on its
neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from signllm.clip_geometry import (
    CLIP_FRAMES,
    TEMPORAL_KERNEL,
    TEMPORAL_STRIDE,
    temporal_convolution_count,
)
from signllm.errors import UsageError
from signllm.models.backbone import build_backbone, group_norm
from signllm.models.collectives import sequence_starts, video_of_each_row
from signllm.models.feature_cache import content_key, feature_cache, weights_key

PIXELS_PER_PASS = {"cpu": 2**20, "cuda": 2**22}
"""Pixels of the frames in one pass through the backbone, by device, unless ``frames_per_chunk`` is given.

Measured with EfficientNet-Lite0 on a CPU: a pixel takes 2 KB where the backbone learns, so a pass 2 GB, and
0.3 KB where it does not. A GPU has the memory for larger passes, and needs them to be busy.
"""
STACKED_PER_PASS = 2**26
"""Floats of the frames laid side by side for a temporal convolution at a time: 256 MB."""
FEW_CELLS = 4
"""Most cells of a map over which a convolution is computed as a matrix product."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class VisualEncoderConfig:
    """How frames become vectors.

    Not stated in the paper, so ours: everything but backbone, kernels, strides and width.

    Attributes:
        backbone: ``resnet18``, a folder with a ``transformers`` image model, or its name on the hub.
        backbone_config: settings of a randomly initialised backbone instead (``model_type``, default resnet,
            and its fields).
        backbone_shape: settings of the pretrained ``backbone``, recorded by ``pretrain``: whoever reads the
            run needs neither the hub nor a folder, because its checkpoints hold the weights.
        backbone_weights: safetensors file with weights for the backbone.
        freeze_backbone: the backbone does not learn, and keeps no activations. On a CPU its maps are stored
            for later epochs where the environment variable SIGNLLM_FEATURE_CACHE names a folder for them.
        width: D, the width of z.
        hidden: channels between the two Conv3D; None takes ``width``.
        pooling: ``mean`` over the last map (the paper's); ``flatten`` keeps the place of things (a linear
            layer to D).
        frame_size: side of the frames, read by ``flatten`` alone.
        whitened_start: with ``flatten``, the linear layer starts as the PCA whitening of its inputs on the
            videos of the codebook's k-means start: D decorrelated directions of equal variance, so that
            nothing loud (where the hand is) hides what is quiet (its shape) from the first codes.
        final_norm: ``layer`` gives every z norm sqrt(D), so that dot products do not saturate; ``none``
            leaves z as it is.
        subtract_video_mean: take a video's temporal mean out of its frames and its features; without it codes
            name the signer.
        frames_per_chunk: largest number of frames in one pass through the backbone, in every stage and
            whatever the batch; 0 takes as many as have ``PIXELS_PER_PASS`` pixels together (20 of 224 x 224
            and 83 of 112 x 112 on a CPU, four times as many on a GPU), at least one. Results are the same
            up to rounding.
        recompute: recompute the backbone in the backward pass instead of keeping the activations of all
            frames of the step. On a CPU, where a lack of memory kills the process, a step of several passes
            is always recomputed; a ``frames_per_chunk`` that holds the whole step avoids that work, which is
            a third of the backbone's.
    """

    backbone: str = "resnet18"
    backbone_config: dict[str, Any] | None = None
    backbone_shape: dict[str, Any] | None = None
    backbone_weights: str | None = None
    freeze_backbone: bool = False
    width: int = 1024
    hidden: int | None = None
    pooling: Literal["mean", "flatten"] = "mean"
    frame_size: int = 224
    whitened_start: bool = False
    final_norm: Literal["layer", "none"] = "layer"
    subtract_video_mean: bool = False
    frames_per_chunk: int = 0
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.width < 1 or (self.hidden is not None and self.hidden < 1):
            raise UsageError(f"encoder.width is {self.width}, hidden {self.hidden}", remedy="give 1 or more")
        if self.whitened_start and self.pooling != "flatten":
            raise UsageError(
                "encoder.whitened_start needs the linear layer that only pooling=flatten has",
                remedy="set encoder.pooling=flatten, or whitened_start=False",
            )
        if self.frames_per_chunk < 0:
            raise UsageError(
                f"encoder.frames_per_chunk is {self.frames_per_chunk}",
                remedy="give the number of frames, or 0 for as many as fit into a pass of the default size",
            )

    def frames_per_pass(self, height: int, width: int, device: str = "cpu") -> int:
        """Return how many frames of a size go through the backbone at a time on a type of device, at most."""
        pixels = PIXELS_PER_PASS.get(device, PIXELS_PER_PASS["cuda"])
        return self.frames_per_chunk or max(1, pixels // (height * width))


class TemporalConv3d(nn.Conv3d):
    """A Conv3D (5,3,3), stride (2,1,1), over packed videos, with the parameters of ``nn.Conv3d``.

    The five frames of an output are laid side by side as channels of one Conv2D: exact, and no work on
    borders between videos.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            inputs, outputs, (TEMPORAL_KERNEL, 3, 3), stride=(TEMPORAL_STRIDE, 1, 1), padding=(0, 1, 1)
        )
        self._kept_kernels: dict[tuple[int, int], Tensor] | None = None

    def forward(self, maps: Tensor, taps: Tensor) -> Tensor:  # type: ignore[override]
        """Return (P, outputs, h, w) of maps (F, inputs, h, w), given the frames (P, 5) each output sees."""
        kernel = self._kernel(*maps.shape[2:])
        outputs_per_pass = max(1, STACKED_PER_PASS // (TEMPORAL_KERNEL * maps[0].numel()))
        passes = taps.split(outputs_per_pass)
        return run_passes(self._convolve, [(maps, part, kernel) for part in passes])

    @contextmanager
    def keep_kernel(self) -> Iterator[None]:
        """Prepare the kernel once for all calls inside the block, in which the weights do not change."""
        self._kept_kernels = {}
        try:
            yield
        finally:
            self._kept_kernels = None

    def _kernel(self, height: int, width: int) -> Tensor:
        """Return what ``_convolve`` multiplies maps of a size with: a kernel, or a matrix for few cells."""
        kept = self._kept_kernels
        if kept is not None and (height, width) in kept:
            return kept[height, width]
        kernel = self.weight.transpose(1, 2).flatten(1, 2)
        if height * width <= FEW_CELLS:
            kernel = _matrix_of_kernel(kernel, height, width)
        if kept is not None:
            kept[height, width] = kernel
        return kernel

    def _convolve(self, maps: Tensor, taps: Tensor, kernel: Tensor) -> Tensor:
        stacked = maps.index_select(0, taps.reshape(-1)).reshape(taps.shape[0], -1, *maps.shape[2:])
        if kernel.dim() == 4:
            return functional.conv2d(stacked, kernel, self.bias, padding=1)
        product = stacked.reshape(len(stacked), -1) @ kernel
        result = product.reshape(len(stacked), -1, *maps.shape[2:])
        return result if self.bias is None else result + self.bias[:, None, None]


def _matrix_of_kernel(kernel: Tensor, height: int, width: int) -> Tensor:
    """Return the matrix (C·h·w, outputs·h·w) that convolves maps of few cells, padded by 1, with a kernel.

    Over maps of 2 x 2 cells a convolution multiplies zeros of the padding most of the time. On an AVX2
    processor a step through the product takes a third of the time: 17 instead of 50 ms for 352 maps.

    Args:
        kernel: (outputs, C, 3, 3).
        height: h of the maps, in cells.
        width: w of the maps, in cells.
    """
    cells = height * width
    one_cell = torch.eye(cells, device=kernel.device).reshape(cells, 1, height, width)
    reached = functional.unfold(one_cell, 3, padding=1).reshape(cells, 9, cells)  # from cell, by tap, to cell
    matrix = torch.einsum("cto,nkt->kcno", reached.to(kernel.dtype), kernel.flatten(2))
    return matrix.reshape(kernel.shape[1] * cells, -1)


class VisualEncoder(nn.Module):
    """Backbone, two temporal convolutions, pooling; see the module's head."""

    def __init__(self, config: VisualEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(
            config.backbone,
            random=config.backbone_config,
            shape=config.backbone_shape,
            weights=config.backbone_weights,
        )
        if config.freeze_backbone:
            self.backbone.requires_grad_(False)
            self.backbone.saved_when_frozen = True  # a checkpoint must not depend on another file
        hidden = config.hidden or config.width
        self.first = TemporalConv3d(self.backbone.channels, hidden)
        self.norm = group_norm(hidden)
        self.second = TemporalConv3d(hidden, config.width if config.pooling == "mean" else hidden)
        self.flatten = (
            nn.Linear(hidden * self._cells(), config.width) if config.pooling == "flatten" else None
        )
        self.final_norm = (
            nn.LayerNorm(config.width, elementwise_affine=False) if config.final_norm == "layer" else None
        )
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).reshape(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor, frame_counts: Tensor) -> tuple[Tensor, Tensor]:
        """Encode packed videos.

        Args:
            frames: (sum T, 3, H, W), uint8 or floats in [0, 1].
            frame_counts: (B,) frames of each video, each at least 1.

        Returns:
            z (sum N, D) and its counts (B,), N = floor((max(T, 13) - 13) / 4) + 1; short videos repeat their
            last frame.
        """
        pooled, counts = self.pool(frames, frame_counts)
        return self.project(pooled), counts

    def pool(self, frames: Tensor, frame_counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled maps (sum N, F) that :meth:`project` takes, and their counts (B,).

        Where nothing learns, each video is encoded alone: the memory does not depend on the number of videos,
        and not a bit of an encoding depends on the other videos of the batch.
        """
        if torch.is_grad_enabled() or len(frame_counts) == 1:
            return self._pool(frames, frame_counts, self._weights_key(frames))
        videos = zip(frames.split(frame_counts.tolist()), frame_counts.split(1), strict=True)
        weights = self._weights_key(frames)
        with self.first.keep_kernel(), self.second.keep_kernel():
            pooled, counts = zip(*(self._pool(*video, weights) for video in videos), strict=True)
        return torch.cat(pooled), torch.cat(counts)

    def _pool(self, frames: Tensor, frame_counts: Tensor, weights: str) -> tuple[Tensor, Tensor]:
        maps = self._maps(frames, frame_counts, weights)
        if self.config.subtract_video_mean:
            maps = subtract_video_mean(maps, frame_counts)
        taps, counts = first_convolution_inputs(frame_counts)
        maps = functional.relu(self.norm(self.first(maps, taps)))
        taps, counts = convolution_inputs(counts)
        maps = self.second(maps, taps)
        return (maps.mean(dim=(2, 3)) if self.flatten is None else maps.flatten(1)), counts

    def project(self, pooled: Tensor) -> Tensor:
        """Return z (sum N, D) of pooled maps (sum N, F): linear layer and final norm, where there are any."""
        z = pooled if self.flatten is None else self.flatten(pooled)
        return z if self.final_norm is None else self.final_norm(z)

    @torch.no_grad()
    def whiten(self, pooled: Tensor) -> None:
        """Set the linear layer to the PCA whitening of a sample of its inputs (n, F), equal on every rank.

        Directions in which the sample does not vary (one vector varies in none) keep their first weights.
        """
        assert self.flatten is not None
        mean = pooled.double().mean(dim=0)
        variances, directions = torch.linalg.eigh((pooled.double() - mean).T.cov(correction=0))
        kept = min(self.config.width, int((variances > 1e-6 * variances[-1].clamp(min=1e-9)).sum()))
        if kept == 0:
            return
        weight = (directions[:, -kept:] * variances[-kept:].rsqrt()).T.to(self.flatten.weight.dtype)
        self.flatten.weight[:kept] = weight
        self.flatten.bias.copy_(-(self.flatten.weight @ mean.to(weight.dtype)))

    def train(self, mode: bool = True) -> VisualEncoder:
        """Switch the mode; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.config.freeze_backbone:
            self.backbone.eval()
        return self

    def _weights_key(self, frames: Tensor) -> str:
        """Return the key of the backbone's weights in the feature cache; empty where there is no cache."""
        if not self.config.freeze_backbone or frames.is_cuda or self.first.weight.dtype != torch.float32:
            return ""
        return "" if feature_cache() is None else weights_key(self.backbone, self._preparation)

    def _maps(self, frames: Tensor, frame_counts: Tensor, weights: str) -> Tensor:
        """Return the backbone's maps (sum T, C, h, w), those of a frozen one from the feature cache."""
        if torch.is_grad_enabled() and not self.config.freeze_backbone:
            return self._features(frames, frame_counts)
        cache = feature_cache() if weights else None
        maps = []
        with torch.no_grad():
            # Each video alone, so that no neighbour changes a rounding.
            for video, count in zip(frames.split(frame_counts.tolist()), frame_counts.split(1), strict=True):
                compute = partial(self._features, video, count)
                maps.append(compute() if cache is None else cache.maps(content_key(video, weights), compute))
        return torch.cat(maps)

    @cached_property
    def _preparation(self) -> str:
        """What decides the maps of a frame, except for the weights of the backbone."""
        return f"{self.backbone.model.config} subtract_video_mean={self.config.subtract_video_mean}"

    def _features(self, frames: Tensor, frame_counts: Tensor) -> Tensor:
        """Return the backbone's maps (sum T, C, h, w), computed in passes of a bounded number of frames."""
        height, width = frames.shape[2:]
        frames_per_pass = self.config.frames_per_pass(height, width, frames.device.type)
        passes: list[tuple[Tensor, ...]] = [(part,) for part in frames.split(frames_per_pass)]
        if self.config.subtract_video_mean:
            means = video_means(frames, frame_counts, self.first.weight.dtype, frames_per_pass)
            videos = video_of_each_row(frame_counts).split(frames_per_pass)
            passes = [(*part, means, video) for part, video in zip(passes, videos, strict=True)]
        return run_passes(self._one_pass, passes, recompute=self.config.recompute)

    def _one_pass(self, frames: Tensor, means: Tensor | None = None, videos: Tensor | None = None) -> Tensor:
        """Return the maps of frames (F, 3, H, W), given the temporal means and the video of each frame."""
        dtype = self.first.weight.dtype
        scale = 255.0 if frames.dtype == torch.uint8 else 1.0
        pixels = frames.to(dtype=dtype, memory_format=torch.channels_last)
        if means is not None and videos is not None:
            pixels = (pixels - means.index_select(0, videos)).div_(self.pixel_std.to(dtype) * scale)
        else:
            pixels = (pixels / scale).sub_(self.pixel_mean.to(dtype)).div_(self.pixel_std.to(dtype))
        return self.backbone(pixels)

    @torch.no_grad()
    def _cells(self) -> int:
        size = self.config.frame_size
        maps = self.backbone(torch.zeros(1, 3, size, size))
        return int(maps.shape[2] * maps.shape[3])


def run_passes(
    function: Callable[..., Tensor], passes: Sequence[tuple[Tensor, ...]], *, recompute: bool = False
) -> Tensor:
    """Return the rows that ``function`` computes from the arguments of each pass, one pass after the other.

    Args:
        function: what a pass computes.
        passes: the tensors that each pass takes.
        recompute: keep the arguments for the backward pass, and compute everything else again. On a CPU
            several passes are always recomputed; otherwise they would take the memory of one large pass.
    """
    if torch.is_grad_enabled() and (recompute or (len(passes) > 1 and passes[0][0].device.type == "cpu")):
        function = partial(checkpoint, function, use_reentrant=False)
    rows = [function(*tensors) for tensors in passes]
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def video_means(frames: Tensor, counts: Tensor, dtype: torch.dtype, frames_per_pass: int) -> Tensor:
    """Return the temporal mean (B, 3, H, W) of each video, converting a pass of frames at a time."""
    sums_dtype = torch.promote_types(dtype, torch.float32)
    means = []
    for video in frames.split(counts.tolist()):
        total = sum(part.sum(dim=0, dtype=sums_dtype) for part in video.split(frames_per_pass))
        means.append((total / len(video)).to(dtype))
    return torch.stack(means)


def subtract_video_mean(x: Tensor, counts: Tensor) -> Tensor:
    """Return packed frames or maps (sum T, ...) less the temporal mean of their own video."""
    means = torch.stack([part.mean(dim=0) for part in x.split(counts.tolist())])
    return x - means.index_select(0, video_of_each_row(counts))


def first_convolution_inputs(frame_counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the frames (P, 5) that each output of the first convolution sees, and outputs per video (B,).

    A video shorter than 13 frames is continued by its last frame: the same index again.
    """
    taps, counts = convolution_inputs(
        frame_counts.clamp(min=CLIP_FRAMES), starts=sequence_starts(frame_counts)
    )
    last = sequence_starts(frame_counts) + frame_counts - 1
    return torch.minimum(taps, last[video_of_each_row(counts)][:, None]), counts


def convolution_inputs(counts: Tensor, *, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the rows (P, 5) that each output (5 taps, stride 2) sees, and outputs per video (B,)."""
    starts = sequence_starts(counts) if starts is None else starts
    outputs = temporal_convolution_count(counts)
    video = video_of_each_row(outputs)
    place = torch.arange(len(video), device=counts.device) - sequence_starts(outputs)[video]
    first = starts[video] + TEMPORAL_STRIDE * place
    return first[:, None] + torch.arange(TEMPORAL_KERNEL, device=counts.device), outputs
