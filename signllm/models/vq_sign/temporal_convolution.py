"""Temporal convolutions over packed videos: a Conv3D with kernel (5, 3, 3) and stride (2, 1, 1).

Videos are packed, not padded: each output gathers its own five rows (:func:`convolution_inputs`), so that
nothing is computed across the border between two videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from signllm.clip_geometry import CLIP_FRAMES, TEMPORAL_KERNEL, TEMPORAL_STRIDE, count_convolution_outputs
from signllm.distributed.collectives import sequence_starts, video_of_each_row

STACKED_PER_PASS = 2**26
"""Largest number of floats that a temporal convolution gathers at a time: 256 MB."""
FEW_CELLS = 4
"""Maps with at most this number of cells (height x width) are convolved by one matrix product."""


class TemporalConv3d(nn.Conv3d):
    """A Conv3D with kernel (5, 3, 3) and stride (2, 1, 1) over packed videos.

    It has the parameters of ``nn.Conv3d``. The five maps that an output reads are concatenated as channels of
    one Conv2D. The result is the same, and nothing is computed across the border between two videos.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            inputs, outputs, (TEMPORAL_KERNEL, 3, 3), stride=(TEMPORAL_STRIDE, 1, 1), padding=(0, 1, 1)
        )
        self._kept_kernels: dict[tuple[int, int], Tensor] | None = None

    def forward(self, maps: Tensor, taps: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve packed maps.

        Args:
            maps: (F, inputs, h, w) feature maps of the frames of all videos.
            taps: (P, 5) indices of the maps that each output reads (:func:`convolution_inputs`).

        Returns:
            (P, outputs, h, w) maps.
        """
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
        """Return the factor of ``_convolve`` for maps of a size: the kernel, or a matrix for few cells."""
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
    """Return the matrix (C·h·w, outputs·h·w) by which a 3 x 3 kernel convolves maps with a padding of 1.

    Over maps of 2 x 2 cells, most multiplications of a convolution are with zeros of the padding. On a
    processor with AVX2 a step with the matrix product takes a third of the time: 17 instead of 50 ms for 352
    maps.

    Args:
        kernel: (outputs, C, 3, 3).
        height: height h of the maps, in cells.
        width: width w of the maps, in cells.
    """
    cells = height * width
    one_cell = torch.eye(cells, device=kernel.device).reshape(cells, 1, height, width)
    # For each input cell, which output cells it reaches through which of the 9 cells of the kernel.
    reached = functional.unfold(one_cell, 3, padding=1).reshape(cells, 9, cells)
    matrix = torch.einsum("cto,nkt->kcno", reached.to(kernel.dtype), kernel.flatten(2))
    return matrix.reshape(kernel.shape[1] * cells, -1)


def run_passes(
    function: Callable[..., Tensor], passes: Sequence[tuple[Tensor, ...]], *, recompute: bool = False
) -> Tensor:
    """Call ``function`` once per pass and return the concatenated results.

    Args:
        function: computes the rows of one pass.
        passes: arguments of each call.
        recompute: keep only the arguments for the backward pass and compute everything else again (gradient
            checkpointing). On a CPU several passes are always recomputed; otherwise they would need as much
            memory as one large pass.
    """
    if torch.is_grad_enabled() and (recompute or (len(passes) > 1 and passes[0][0].device.type == "cpu")):
        function = partial(checkpoint, function, use_reentrant=False)
    rows = [function(*tensors) for tensors in passes]
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def first_convolution_inputs(frame_counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return :func:`convolution_inputs` of the first convolution.

    A video shorter than 13 frames is continued by its last frame: the index of that frame is repeated.

    Args:
        frame_counts: (B,) number of frames of each video.
    """
    taps, counts = convolution_inputs(
        frame_counts.clamp(min=CLIP_FRAMES), starts=sequence_starts(frame_counts)
    )
    last = sequence_starts(frame_counts) + frame_counts - 1
    return torch.minimum(taps, last[video_of_each_row(counts)][:, None]), counts


def convolution_inputs(counts: Tensor, *, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return which rows each output of a temporal convolution (kernel 5, stride 2) reads.

    Args:
        counts: (B,) number of rows of each video, at least 5.
        starts: (B,) index of each video's first row, by default that of packed rows.

    Returns:
        indices (P, 5) of the rows that each of the P outputs reads, and the number of outputs per video,
        (B,).
    """
    starts = sequence_starts(counts) if starts is None else starts
    outputs = count_convolution_outputs(counts)
    video = video_of_each_row(outputs)
    place = torch.arange(len(video), device=counts.device) - sequence_starts(outputs)[video]
    first = starts[video] + TEMPORAL_STRIDE * place
    return first[:, None] + torch.arange(TEMPORAL_KERNEL, device=counts.device), outputs
