"""A bounded number of frames goes through the backbone at a time, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from signllm.data.loading.mixture import open_mixture
from signllm.models.vq_sign import temporal_convolution
from signllm.models.vq_sign.temporal_convolution import TemporalConv3d, first_convolution_inputs
from signllm.models.vq_sign.visual_encoder import (
    PIXELS_PER_PASS,
    VisualEncoder,
    subtract_video_mean,
    video_means,
)
from tests.models import parts

LENGTHS = (13, 30, 5, 17)


def encoder(**changes: object) -> VisualEncoder:
    torch.manual_seed(1)
    return VisualEncoder(parts.encoder_config(**changes))


def encode(model: VisualEncoder, videos: list[Tensor]) -> list[Tensor]:
    z, counts = model(torch.cat(videos), torch.tensor([len(video) for video in videos]))
    return list(z.split(counts.tolist()))


def record_passes(model: VisualEncoder) -> list[int]:
    """Return a list to which every forward pass of the backbone appends its number of frames."""
    passes: list[int] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    return passes


def test_the_default_number_follows_from_the_size_of_a_frame() -> None:
    config = parts.encoder_config()
    assert config.frames_per_chunk == 0
    for height, width in ((224, 224), (112, 112), (48, 48), (240, 320)):
        for device, pixels in PIXELS_PER_PASS.items():
            frames = config.frames_per_pass(height, width, device)
            assert frames * height * width <= pixels < (frames + 1) * height * width
    assert config.frames_per_pass(4096, 4096) == 1
    assert replace(config, frames_per_chunk=300).frames_per_pass(224, 224) == 300


@pytest.mark.parametrize("changes", [{}, {"freeze_backbone": True}, {"subtract_video_mean": True}])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("limit", [1, 4, 16, 17, 100])
def test_no_pass_has_more_frames_and_every_frame_passes(
    changes: dict, learns: bool, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PIXELS_PER_PASS, "cpu", limit * parts.SIZE**2 + 5)
    model = encoder(**changes).train(learns)
    passes = record_passes(model)
    with torch.set_grad_enabled(learns):
        encode(model, parts.frames_of(LENGTHS))
    assert max(passes) <= limit
    assert sum(passes) == sum(LENGTHS)


@pytest.mark.parametrize(
    "changes", [{}, {"freeze_backbone": True}, {"subtract_video_mean": True}, {"pooling": "flatten"}]
)
@pytest.mark.parametrize("frames", [1, 7, 13, 32])
def test_values_and_gradients_are_those_of_one_pass(
    changes: dict, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for frames_per_chunk, stacked in ((1000, 2**30), (frames, 3000)):
        monkeypatch.setattr(temporal_convolution, "STACKED_PER_PASS", stacked)
        model = encoder(frames_per_chunk=frames_per_chunk, **changes).double()
        z = torch.cat(encode(model, parts.frames_of(LENGTHS)))
        z.square().sum().backward()
        with torch.no_grad():
            alone = torch.cat(encode(model.eval(), parts.frames_of(LENGTHS)))
        results.append([z, alone, *(p.grad for p in model.parameters() if p.requires_grad)])
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[0][1], results[0][0])


def test_not_a_bit_of_an_encoding_depends_on_the_other_videos_of_the_batch() -> None:
    videos = parts.frames_of((40, 13, 31, 5, 22, 60))
    for changes in ({}, {"subtract_video_mean": True, "frames_per_chunk": 9}):
        model = encoder(**changes).eval()
        with torch.no_grad():
            together = encode(model, videos)
            for video, expected in zip(videos, together, strict=True):
                assert torch.equal(encode(model, [video])[0], expected)
            for expected, value in zip(together[1:3], encode(model, videos[1:3]), strict=True):
                assert torch.equal(value, expected)


def bytes_kept_for_the_backward_pass(compute: Callable[[], object]) -> int:
    """Return the bytes of the tensors that autograd keeps, each storage once."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_step_of_several_passes_keeps_no_activations_of_the_backbone() -> None:
    videos = parts.frames_of((60, 40))
    kept = {}
    for frames_per_chunk in (100, 50):
        model = encoder(frames_per_chunk=frames_per_chunk)
        kept[frames_per_chunk] = bytes_kept_for_the_backward_pass(lambda model=model: encode(model, videos))
    one_frame = 4 * parts.SIZE**2 * 3
    assert kept[100] - kept[50] > 100 * one_frame


def test_a_temporal_convolution_keeps_no_stacked_frames_of_several_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    convolution = TemporalConv3d(3, 2)
    maps = torch.randn(80, 3, 4, 4, requires_grad=True)
    taps, _ = first_convolution_inputs(torch.tensor([30, 50]))
    results, kept = [], []
    for limit in (2**20, 5 * maps[0].numel() * 4):
        monkeypatch.setattr(temporal_convolution, "STACKED_PER_PASS", limit)
        kept.append(bytes_kept_for_the_backward_pass(lambda: convolution(maps, taps)))
        y = convolution(maps, taps)
        results.append((y, *torch.autograd.grad(y.square().sum(), (maps, *convolution.parameters()))))
    torch.testing.assert_close(results[1], results[0])
    stacked = 4 * taps.numel() * maps[0].numel()
    assert kept[0] - kept[1] > stacked / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_means_of_videos_read_in_passes_are_those_of_all_frames(dtype: torch.dtype) -> None:
    frames, counts = torch.cat(parts.frames_of(LENGTHS)), torch.tensor(LENGTHS)
    for frames_per_pass in (1, 7, 1000):
        means = video_means(frames, counts, dtype, frames_per_pass)
        assert means.dtype == dtype
        exact = frames.double() - subtract_video_mean(frames.double(), counts)
        firsts = torch.tensor([0, *LENGTHS[:-1]]).cumsum(0)
        torch.testing.assert_close(means, exact[firsts].to(dtype))


def test_no_stage_has_a_larger_pass(composed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K-means start, training, validation, composing and evaluating, with a limit of eleven frames."""
    from signllm.models.vq_sign.backbone import Backbone
    from signllm.stages.compose import compose
    from signllm.stages.pretrain import pretrain
    from tests.stages import path

    passes: list[int] = []
    forward = Backbone.forward
    monkeypatch.setitem(PIXELS_PER_PASS, "cpu", 11 * parts.SIZE**2)
    monkeypatch.setattr(
        Backbone, "forward", lambda self, frames: (passes.append(len(frames)), forward(self, frames))[1]
    )
    training = replace(path.PRETRAIN.training, steps=2, validate_every=2)
    pretrain(
        replace(path.PRETRAIN, training=training),
        run=tmp_path / "run",
        dataset=open_mixture(composed / "shards"),
    )
    of_training = len(passes)
    compose(tmp_path / "run", open_mixture(composed / "shards"), path.COMPOSE)
    assert len(passes) > of_training > 0
    assert max(passes) <= 11
