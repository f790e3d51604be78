"""The encoder: the same encoding of a video clip by clip or packed, alone or in a batch."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from signllm.clip_geometry import count_clips
from signllm.errors import UsageError
from signllm.models.vq_sign.backbone import Backbone, build_backbone, group_norm
from signllm.models.vq_sign.temporal_convolution import TemporalConv3d, convolution_inputs
from signllm.models.vq_sign.visual_encoder import VisualEncoder, subtract_video_mean
from tests.models import parts

VARIANTS = [
    {},
    {"pooling": "flatten", "final_norm": "none"},
    {"subtract_video_mean": True},
    {"frames_per_chunk": 7},
]


def encoder(**changes: object) -> VisualEncoder:
    torch.manual_seed(1)
    return VisualEncoder(parts.encoder_config(**changes)).double()


def encode(model: VisualEncoder, videos: list[Tensor]) -> list[Tensor]:
    z, counts = model(torch.cat(videos), torch.tensor([len(video) for video in videos]))
    return list(z.split(counts.tolist()))


def test_a_video_of_t_frames_has_floor_of_t_minus_13_by_4_plus_1_characters() -> None:
    lengths = [13, 14, 16, 17, 20, 21, 147, 300]
    expected = [1, 1, 1, 2, 2, 3, 34, 72]
    assert count_clips(torch.tensor(lengths)).tolist() == expected
    _, counts = encoder()(torch.cat(parts.frames_of(lengths[:6])), torch.tensor(lengths[:6]))
    assert counts.tolist() == expected[:6]


@pytest.mark.parametrize("changes", VARIANTS)
def test_an_encoding_does_not_depend_on_the_neighbours_in_the_batch(changes: dict) -> None:
    model, videos = encoder(**changes), parts.frames_of([13, 30, 5, 22])
    together = encode(model, videos)
    for alone, video in zip(together, videos, strict=True):
        torch.testing.assert_close(alone, encode(model, [video])[0])


@pytest.mark.parametrize("changes", [{}, {"pooling": "flatten"}])
def test_packed_encoding_equals_the_clips_of_13_frames_with_gap_4_one_by_one(changes: dict) -> None:
    model, (video,) = encoder(**changes), parts.frames_of([45])
    clips = [video[start : start + 13] for start in range(0, 45 - 12, 4)]
    torch.testing.assert_close(
        encode(model, [video])[0], torch.cat([encode(model, [clip])[0] for clip in clips])
    )


def test_a_short_video_is_continued_by_its_last_frame() -> None:
    model, (video,) = encoder(), parts.frames_of([6])
    continued = torch.cat([video, video[-1:].expand(7, -1, -1, -1)])
    torch.testing.assert_close(encode(model, [video])[0], encode(model, [continued])[0])


def test_the_temporal_convolution_is_a_conv3d_with_the_same_parameters() -> None:
    torch.manual_seed(0)
    ours = TemporalConv3d(3, 4).double()
    maps = torch.randn(11, 3, 5, 6, dtype=torch.float64)
    taps, _ = convolution_inputs(torch.tensor([11]))
    plain = torch.nn.functional.conv3d(
        maps.transpose(0, 1)[None], ours.weight, ours.bias, stride=ours.stride, padding=ours.padding
    )
    torch.testing.assert_close(ours(maps, taps), plain[0].transpose(0, 1))


def test_subtracting_the_mean_makes_a_constant_background_invisible() -> None:
    model, (video,) = encoder(subtract_video_mean=True), parts.frames_of([21])
    brighter = video.double() / 255 + 0.25
    torch.testing.assert_close(encode(model, [video.double() / 255])[0], encode(model, [brighter])[0])
    counts = torch.tensor([2, 3])
    left = subtract_video_mean(torch.randn(5, 2), counts)
    torch.testing.assert_close(left[:2].sum(0), torch.zeros(2))
    torch.testing.assert_close(left[2:].sum(0), torch.zeros(2))


def test_bytes_and_floats_are_the_same_pictures() -> None:
    model, (video,) = encoder(), parts.frames_of([14])
    torch.testing.assert_close(encode(model, [video])[0], encode(model, [video.double() / 255])[0])


def test_flatten_sees_where_things_are_and_mean_hardly_does() -> None:
    dark = torch.zeros(13, 3, parts.SIZE, parts.SIZE, dtype=torch.uint8)
    left, right = dark.clone(), dark.clone()
    left[:, :, 8:16, 0:8], right[:, :, 8:16, 16:24] = 255, 255
    apart = {}
    for pooling in ("mean", "flatten"):
        model = encoder(pooling=pooling)
        a, b = encode(model, [left, right])
        apart[pooling] = ((a - b).norm() / a.norm()).item()
    assert apart["flatten"] > 2 * apart["mean"]


def test_a_frozen_backbone_gets_no_gradient_and_keeps_no_graph() -> None:
    model = encoder(freeze_backbone=True).train()
    encode(model, parts.frames_of([17]))[0].sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())
    assert model.first.weight.grad is not None
    assert not model.backbone.training


def test_recomputing_gives_the_same_gradients() -> None:
    grads = []
    for recompute in (False, True):
        model = encoder(recompute=recompute)
        encode(model, parts.frames_of([17]))[0].square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


def test_a_dinov2_style_backbone_works_and_does_not_mix_frames() -> None:
    dinov2 = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
    }
    model = encoder(backbone_config={**dinov2, "image_size": parts.SIZE}).eval()
    videos = parts.frames_of([13, 18])
    assert model.backbone(torch.randn(2, 3, 32, 48, dtype=torch.float64)).shape == (2, 16, 4, 6)
    torch.testing.assert_close(encode(model, videos)[1], encode(model, videos[1:])[0])


def test_a_pretrained_backbone_keeps_its_batch_statistics(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    ResNetModel(ResNetConfig(**parts.TINY_RESNET)).save_pretrained(tmp_path)
    model = VisualEncoder(parts.encoder_config(backbone=str(tmp_path), backbone_config=None)).train()
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    assert any("running_mean" in name for name in before)
    encode(model, parts.frames_of([17]))
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.named_buffers())


def test_batch_norm_equals_torch_in_evaluation_mode_and_accepts_16_bits() -> None:
    norm = nn.BatchNorm2d(6)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)
    resting = Backbone(_Maps(copy.deepcopy(norm))).train()
    maps = torch.randn(2, 6, 3, 3)
    assert torch.equal(resting(maps), norm.eval()(maps))
    for parameter in resting.parameters():
        parameter.data = parameter.bfloat16()
    result = resting(maps.bfloat16())
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), norm(maps), rtol=0.02, atol=0.02)
    result.sum().backward()
    assert all(parameter.grad is not None for parameter in resting.parameters())


class _Maps(nn.Module):
    """A ``transformers`` image model of one layer."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.config = norm, SimpleNamespace(hidden_size=6)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.norm(pixel_values))


def test_backbone_weights_are_read_from_a_file_and_must_fit(tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = build_backbone("", random=parts.TINY_RESNET)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    loaded = VisualEncoder(parts.encoder_config(backbone_weights=str(tmp_path / "weights.safetensors")))
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.backbone.parameters(), source.parameters(), strict=True)
    )
    wider = {**parts.TINY_RESNET, "hidden_sizes": [4, 16]}
    with pytest.raises(UsageError, match="do not fit"):
        build_backbone("", random=wider, weights=str(tmp_path / "weights.safetensors"))
    with pytest.raises(UsageError, match="does not exist"):
        build_backbone("", random=wider, weights=str(tmp_path / "missing.safetensors"))


def test_a_backbone_that_is_not_there_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="backbone_config"):
        build_backbone(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="transformers configuration"):
        build_backbone("", random={"model_type": "no-such-model"})


def test_a_backbone_configuration_without_channels_is_refused() -> None:
    settings = {"model_type": "mobilenet_v2", "depth_multiplier": 0.35}
    with pytest.raises(UsageError, match="hidden_size"):
        build_backbone("", random=settings)
    backbone = build_backbone("", random={**settings, "hidden_size": 1280})
    assert backbone(torch.zeros(1, 3, 32, 32)).shape[1] == backbone.channels


def test_a_whitened_start_gives_decorrelated_directions_of_equal_variance() -> None:
    model = encoder(pooling="flatten", final_norm="none", whitened_start=True)
    pooled, _ = model.pool(torch.cat(parts.frames_of([400, 300])), torch.tensor([400, 300]))
    model.whiten(pooled)
    z = model.project(pooled)
    kept = min(z.shape[1], pooled.shape[1])
    torch.testing.assert_close(z.mean(dim=0), torch.zeros_like(z[0]), atol=1e-6, rtol=0)
    covariance = z[:, :kept].T.cov(correction=0)
    torch.testing.assert_close(covariance, torch.eye(kept, dtype=z.dtype), atol=1e-6, rtol=0)


def test_a_whitened_start_without_the_layer_it_sets_is_refused() -> None:
    with pytest.raises(UsageError, match="pooling=flatten"):
        parts.encoder_config(pooling="mean", whitened_start=True)


def test_one_vector_cannot_be_whitened_and_changes_nothing() -> None:
    model = encoder(pooling="flatten", whitened_start=True)
    pooled, _ = model.pool(torch.cat(parts.frames_of([13])), torch.tensor([13]))
    before = model.project(pooled)
    model.whiten(pooled)
    assert torch.isfinite(before).all()
    torch.testing.assert_close(model.project(pooled), before)


@pytest.mark.parametrize("size", [2, 8, 24])
def test_group_norm_of_maps_with_channels_last_is_torchs(size: int) -> None:
    torch.manual_seed(0)
    norm = group_norm(16)
    nn.init.normal_(norm.weight)
    maps = torch.randn(3, 16, size, size)
    last = maps.contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = functional.group_norm(maps, 8, norm.weight, norm.bias)
    actual = norm(last)
    torch.testing.assert_close(actual, expected)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    actual.square().sum().backward()
    assert last.grad is not None
    assert last.grad.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (3, 3)])
def test_a_temporal_convolution_over_few_cells_is_that_of_torch(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    convolution = TemporalConv3d(6, 5).double()
    maps = torch.randn(25, 6, *size, dtype=torch.float64, requires_grad=True)
    taps, _ = convolution_inputs(torch.tensor([25]))
    expected = nn.Conv3d.forward(convolution, maps.transpose(0, 1)[None])[0].transpose(0, 1)
    actual = convolution(maps, taps)
    torch.testing.assert_close(actual, expected)
    weight = torch.randn_like(expected)
    parameters = (maps, convolution.weight, convolution.bias)
    gradients = [torch.autograd.grad((out * weight).sum(), parameters) for out in (actual, expected)]
    torch.testing.assert_close(*gradients)
