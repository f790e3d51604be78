"""Convolutions that corrupt memory on processors without AVX-512 are never reached (oneDNN 3.12, torch 2.13).

glibc's checking allocator ends a process as soon as it frees a block that was written beyond its end, and
``DNNL_MAX_CPU_ISA`` makes oneDNN choose the code of an AVX2 processor on any processor that has more.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from signllm.models.vq_sign.backbone import build_backbone, subsample_before_pointwise

CHECKING_ALLOCATOR = "libc_malloc_debug.so.0"
CONVOLUTIONS = """
import torch
from torch import nn
from signllm.models.vq_sign.backbone import subsample_before_pointwise

for channels in (1, 2, 3, 4, 5, 6, 7, 8, 12):
    for size in (8, 10, 16):
        for stride in (2, (2, 1), 4):
            convolution = subsample_before_pointwise(nn.Conv2d(channels, 8, 1, stride=stride))
            x = torch.randn(3, channels, size, size).contiguous(memory_format=torch.channels_last)
            convolution(x.requires_grad_()).square().sum().backward()
print("done")
"""
ENCODERS = """
import torch
from signllm.models.vq_sign.visual_encoder import VisualEncoder, VisualEncoderConfig

frames = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
for layer_type, inner in (("basic", 1), ("bottleneck", 4)):  # a bottleneck has a quarter of the channels
    for channels in range(1, 9):
        sizes = [inner * channels, inner * (channels + 1), inner * (2 * channels + 1)]
        settings = {"embedding_size": channels, "hidden_sizes": sizes, "depths": [1, 1, 1],
                    "layer_type": layer_type, "downsample_in_bottleneck": True,
                    "downsample_in_first_stage": True}
        config = VisualEncoderConfig(backbone_config=settings, width=channels, hidden=channels + 2)
        z, _ = VisualEncoder(config)(frames, torch.tensor([13, 17]))
        z.square().sum().backward()
print("done")
"""


def has_checking_allocator() -> bool:
    try:
        ctypes.CDLL(CHECKING_ALLOCATOR)
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_checking_allocator(), reason=f"this C library has no {CHECKING_ALLOCATOR}")
@pytest.mark.parametrize("code", [CONVOLUTIONS, ENCODERS], ids=["convolutions", "encoders"])
def test_no_number_of_channels_corrupts_the_heap_of_an_avx2_processor(code: str) -> None:
    environment = {
        **os.environ,
        "LD_PRELOAD": CHECKING_ALLOCATOR,
        "MALLOC_CHECK_": "3",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    assert done.stdout == "done\n"


@pytest.mark.parametrize("stride", [2, 3, (2, 1), (1, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_taking_pixels_first_is_the_strided_convolution(stride: int | tuple[int, int], groups: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 1, stride=stride, groups=groups).double()
    ours = nn.Conv2d(4, 6, 1, stride=stride, groups=groups).double()
    ours.load_state_dict(plain.state_dict())
    subsample_before_pointwise(ours)
    for rows, columns in ((8, 8), (7, 9), (1, 5)):
        results: list[tuple[Tensor, ...]] = []
        for convolution in (plain, ours):
            # NCHW, which no processor corrupts.
            generator = torch.Generator().manual_seed(rows)
            x = torch.randn(3, 4, rows, columns, generator=generator, dtype=torch.float64, requires_grad=True)
            y = convolution(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, *convolution.parameters()))))
        for expected, value in zip(*results, strict=True):
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"},
        {"model_type": "regnet", "embedding_size": 4, "hidden_sizes": [4, 8, 8, 8], "depths": [1, 1, 1, 1],
         "groups_width": 4},
        {"model_type": "bit", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1],
         "num_groups": 2},
    ],
    ids=["resnet", "regnet", "bit"],
)  # fmt: skip
def test_no_backbone_keeps_a_strided_pointwise_convolution(settings: dict) -> None:
    backbone = build_backbone("", random=settings)
    pointwise = [
        layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    ]
    assert pointwise
    assert {layer.stride for layer in pointwise} == {(1, 1)}
    assert any(layer._forward_pre_hooks for layer in pointwise)
