"""The feature cache: maps of a frozen backbone are read back bit-identically, and never confused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from signllm.models.vq_sign.feature_cache import VARIABLE
from signllm.models.vq_sign.visual_encoder import VisualEncoder
from tests.models import parts

LENGTHS = (13, 30, 5)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "features"))
    return tmp_path / "features"


def encoder(**changes: object) -> VisualEncoder:
    torch.manual_seed(1)
    return VisualEncoder(parts.encoder_config(freeze_backbone=True, **changes))


def count_backbone_frames(model: VisualEncoder) -> list[int]:
    """Return a list that every forward pass of the backbone appends its number of frames to."""
    frames: list[int] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: frames.append(len(inputs[0])))
    return frames


def encode(model: VisualEncoder, videos: list[Tensor]) -> list[Tensor]:
    z, counts = model(torch.cat(videos), torch.tensor([len(video) for video in videos]))
    return list(z.split(counts.tolist()))


@pytest.mark.parametrize("changes", [{}, {"subtract_video_mean": True}, {"frames_per_chunk": 7}])
def test_stored_maps_give_the_same_encoding_without_the_backbone(folder: Path, changes: dict) -> None:
    videos = parts.frames_of(LENGTHS)
    first = encode(encoder(**changes), videos)
    model = encoder(**changes)
    frames = count_backbone_frames(model)
    second = encode(model, [videos[2], videos[0]])
    assert frames == []
    assert torch.equal(second[0], first[2])
    assert torch.equal(second[1], first[0])


@pytest.mark.parametrize("changes", [{}, {"subtract_video_mean": True}])
def test_the_cache_does_not_change_the_encoding(
    folder: Path, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = parts.frames_of(LENGTHS)
    cached = encode(encoder(**changes), videos)
    monkeypatch.delenv(VARIABLE)
    for expected, actual in zip(encode(encoder(**changes), videos), cached, strict=True):
        torch.testing.assert_close(actual, expected)


def test_gradients_of_what_learns_are_the_same_from_stored_maps(folder: Path) -> None:
    videos = parts.frames_of(LENGTHS)
    gradients = []
    for _ in range(2):
        model = encoder().train()
        sum(z.square().mean() for z in encode(model, videos)).backward()
        gradients.append(model.first.weight.grad)
    assert torch.equal(*gradients)


def test_other_frames_weights_and_settings_are_computed_anew(folder: Path) -> None:
    videos = parts.frames_of((13,))
    encode(encoder(), videos)
    changed = [videos[0].clone()]
    changed[0][0, 0, 0, 0] += 1
    other_weights = encoder()
    with torch.no_grad():
        next(other_weights.backbone.parameters()).add_(1.0)
    for model, frames_in in (
        (encoder(), changed),
        (other_weights, videos),
        (encoder(subtract_video_mean=True), videos),
        (encoder(backbone_config={**parts.TINY_RESNET, "hidden_act": "gelu"}), videos),
    ):
        frames = count_backbone_frames(model)
        encode(model, frames_in)
        assert frames == [13]


def test_a_backbone_that_learns_is_never_read_from_the_cache(folder: Path) -> None:
    torch.manual_seed(1)
    model = VisualEncoder(parts.encoder_config())
    encode(model, parts.frames_of((13,)))
    assert not folder.exists()


def test_a_damaged_file_is_computed_anew(folder: Path) -> None:
    videos = parts.frames_of((13,))
    expected = encode(encoder(), videos)[0]
    [path] = folder.rglob("*.npy")
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(encode(encoder(), videos)[0], expected)
    assert np.load(path).shape[0] == 13


def test_a_folder_that_cannot_be_written_is_named_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    assert len(encode(encoder(), parts.frames_of((13,)))) == 1
    assert str(tmp_path / "file") in caplog.text
