"""The visual encoder: it turns the clips of a video into vectors z (paper section 3.2).

An image backbone computes a feature map of every frame. Two Conv3D with kernel (5, 3, 3), stride (2, 1, 1)
and no temporal padding combine the maps; their receptive field is a clip of 13 frames, their stride is 4
frames (:mod:`signllm.clip_geometry`). The result equals encoding the paper's overlapping clips one by one,
but each frame passes the backbone once instead of 3.25 times. Videos are packed, not padded: each output of a
convolution gathers its own five frames, so the encoding of a video does not depend on the other videos of the
batch.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from signllm.distributed.collectives import video_of_each_row
from signllm.errors import UsageError
from signllm.models.vq_sign.backbone import build_backbone, group_norm
from signllm.models.vq_sign.feature_cache import content_key, feature_cache, weights_key
from signllm.models.vq_sign.temporal_convolution import (
    TemporalConv3d,
    convolution_inputs,
    first_convolution_inputs,
    run_passes,
)
from signllm.validation import NonNegativeInt, PositiveInt, validated

PIXELS_PER_PASS = {"cpu": 2**20, "cuda": 2**22}
"""Largest number of pixels in one pass through the backbone, by device; ``frames_per_chunk`` overrides it.

Measured with EfficientNet-Lite0 on a CPU: a pixel takes 2 KB of memory if the backbone is trained, so a pass
takes 2 GB, and 0.3 KB if it is frozen. A GPU has memory for larger passes and needs them for full
utilization.
"""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@validated
class VisualEncoderConfig:
    """Configuration of the visual encoder.

    The paper states the backbone, the kernels, the strides and the width; everything else is our choice.

    Attributes:
        backbone: ``resnet18``, a folder with a ``transformers`` image model, or the name of one on the hub.
        backbone_config: settings of a randomly initialized backbone, used instead of ``backbone``:
            ``model_type`` (default ``resnet``) and the fields of its ``transformers`` configuration.
        backbone_shape: settings of the pretrained ``backbone``, recorded by ``pretrain``. With them a run can
            be loaded without the hub or a model folder, because its checkpoints contain the weights.
        backbone_weights: safetensors file with weights for the backbone.
        freeze_backbone: whether the backbone is frozen; it then keeps no activations. On a CPU its maps are
            stored for later epochs if the environment variable SIGNLLM_FEATURE_CACHE names a folder.
        width: D, the width of z.
        hidden: channels between the two Conv3D; None means ``width``.
        pooling: ``mean`` averages over the cells of the last map (as the paper does); ``flatten`` applies a
            linear layer to all cells, so that positions in the frame are distinguished.
        frame_size: height and width of the frames in pixels; only ``flatten`` needs it.
        whitened_start: with ``flatten``, initialize the linear layer to the PCA whitening of its inputs,
            computed on the videos of the codebook's k-means initialization. Its D outputs are then
            decorrelated and of equal variance, so that a large variation (the position of the hand) does not
            hide a small one (its shape) from the first codes.
        final_norm: ``layer`` scales every z to norm sqrt(D), so that dot products do not saturate; ``none``
            leaves z unchanged.
        subtract_video_mean: subtract the temporal mean of a video from its frames and from its feature maps;
            without it, codes tend to identify the signer.
        frames_per_chunk: largest number of frames in one pass through the backbone, in every stage and for
            every batch size; 0 means as many as have ``PIXELS_PER_PASS`` pixels together, at least one (20
            frames of 224 x 224 pixels or 83 of 112 x 112 on a CPU, four times as many on a GPU). Results are
            equal up to rounding.
        recompute: recompute the backbone in the backward pass instead of keeping the activations of all
            frames of the step. On a CPU, where a lack of memory kills the process, a step of several passes
            is always recomputed. That costs a third more work in the backbone; a ``frames_per_chunk`` as
            large as the step avoids it.
    """

    backbone: str = "resnet18"
    backbone_config: dict[str, Any] | None = None
    backbone_shape: dict[str, Any] | None = None
    backbone_weights: str | None = None
    freeze_backbone: bool = False
    width: PositiveInt = 1024
    hidden: PositiveInt | None = None
    pooling: Literal["mean", "flatten"] = "mean"
    frame_size: PositiveInt = 224
    whitened_start: bool = False
    final_norm: Literal["layer", "none"] = "layer"
    subtract_video_mean: bool = False
    frames_per_chunk: NonNegativeInt = 0
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.whitened_start and self.pooling != "flatten":
            raise UsageError(
                "encoder.whitened_start needs the linear layer that only pooling=flatten has",
                where="whitened_start",
                remedy="set encoder.pooling=flatten, or whitened_start=False",
            )

    def frames_per_pass(self, height: int, width: int, device: str = "cpu") -> int:
        """Return the largest number of frames of height x width pixels in one pass through the backbone."""
        pixels = PIXELS_PER_PASS.get(device, PIXELS_PER_PASS["cuda"])
        return self.frames_per_chunk or max(1, pixels // (height * width))


class VisualEncoder(nn.Module):
    """Backbone, two temporal convolutions and pooling, as the docstring of this module describes."""

    pixel_mean: Tensor
    pixel_std: Tensor

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
            nn.Linear(hidden * self._count_cells(), config.width) if config.pooling == "flatten" else None
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
            frame_counts: (B,) number of frames of each video, each at least 1.

        Returns:
            z (sum N, D) and the number of clips N of each video, (B,). A video with fewer than 13 frames is
            continued by its last frame.
        """
        pooled, counts = self.pool(frames, frame_counts)
        return self.project(pooled), counts

    def pool(self, frames: Tensor, frame_counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled maps (sum N, F) that :meth:`project` takes, and the number of clips N, (B,).

        Without gradients, each video is encoded separately: the memory does not depend on the number of
            videos,
        and the encoding of a video is bit-identical in every batch.
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
        """Return z (sum N, D) from pooled maps (sum N, F): linear layer and final norm, if configured."""
        z = pooled if self.flatten is None else self.flatten(pooled)
        return z if self.final_norm is None else self.final_norm(z)

    @torch.no_grad()
    def whiten(self, pooled: Tensor) -> None:
        """Set the linear layer to the PCA whitening of its inputs.

        Outputs for which the sample has no further direction of variance keep their random weights.

        Args:
            pooled: (n, F) sample of the inputs, identical on every rank.
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
        """Switch between training and evaluation mode; a frozen backbone stays in evaluation mode."""
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
        """Return the backbone's maps (sum T, C, h, w); a frozen backbone uses the feature cache."""
        if torch.is_grad_enabled() and not self.config.freeze_backbone:
            return self._features(frames, frame_counts)
        cache = feature_cache() if weights else None
        maps = []
        with torch.no_grad():
            # Each video separately, so that rounding does not depend on the other videos of the batch.
            for video, count in zip(frames.split(frame_counts.tolist()), frame_counts.split(1), strict=True):
                compute = partial(self._features, video, count)
                maps.append(compute() if cache is None else cache.maps(content_key(video, weights), compute))
        return torch.cat(maps)

    @cached_property
    def _preparation(self) -> str:
        """Everything that determines the maps of a frame, except the weights of the backbone."""
        return f"{self.backbone.model.config} subtract_video_mean={self.config.subtract_video_mean}"

    def _features(self, frames: Tensor, frame_counts: Tensor) -> Tensor:
        """Return the backbone's maps (sum T, C, h, w), computed in passes over a limited number of frames."""
        height, width = frames.shape[2:]
        frames_per_pass = self.config.frames_per_pass(height, width, frames.device.type)
        passes: list[tuple[Tensor, ...]] = [(part,) for part in frames.split(frames_per_pass)]
        if self.config.subtract_video_mean:
            means = video_means(frames, frame_counts, self.first.weight.dtype, frames_per_pass)
            videos = video_of_each_row(frame_counts).split(frames_per_pass)
            passes = [(*part, means, video) for part, video in zip(passes, videos, strict=True)]
        return run_passes(self._one_pass, passes, recompute=self.config.recompute)

    def _one_pass(self, frames: Tensor, means: Tensor | None = None, videos: Tensor | None = None) -> Tensor:
        """Return the backbone's maps (F, C, h, w) for the frames of one pass.

        Args:
            frames: (F, 3, H, W), uint8 or floats in [0, 1].
            means: (B, 3, H, W) temporal mean of each video, subtracted if given.
            videos: (F,) number of the video that each frame is part of; only needed with ``means``.
        """
        dtype = self.first.weight.dtype
        scale = 255.0 if frames.dtype == torch.uint8 else 1.0
        pixels = frames.to(dtype=dtype, memory_format=torch.channels_last)
        if means is not None and videos is not None:
            pixels = (pixels - means.index_select(0, videos)).div_(self.pixel_std.to(dtype) * scale)
        else:
            pixels = (pixels / scale).sub_(self.pixel_mean.to(dtype)).div_(self.pixel_std.to(dtype))
        return self.backbone(pixels)

    @torch.no_grad()
    def _count_cells(self) -> int:
        """Return the number of cells, h * w, of the backbone's map of a frame."""
        size = self.config.frame_size
        maps = self.backbone(torch.zeros(1, 3, size, size))
        return int(maps.shape[2] * maps.shape[3])


def video_means(frames: Tensor, counts: Tensor, dtype: torch.dtype, frames_per_pass: int) -> Tensor:
    """Return the temporal mean (B, 3, H, W) of each packed video.

    At most ``frames_per_pass`` frames are converted to floating point at a time.
    """
    sums_dtype = torch.promote_types(dtype, torch.float32)
    means = []
    for video in frames.split(counts.tolist()):
        total = sum(part.sum(dim=0, dtype=sums_dtype) for part in video.split(frames_per_pass))
        means.append((total / len(video)).to(dtype))
    return torch.stack(means)


def subtract_video_mean(x: Tensor, counts: Tensor) -> Tensor:
    """Subtract from packed frames or maps (sum T, ...) the temporal mean of their own video."""
    means = torch.stack([part.mean(dim=0) for part in x.split(counts.tolist())])
    return x - means.index_select(0, video_of_each_row(counts))
