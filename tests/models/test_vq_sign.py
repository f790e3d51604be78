"""VQ-Sign as one module: shares and metrics, encoding, k-means initialization, training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from signllm.errors import UsageError
from tests.models import parts

FSQ = {"update": "fsq", "levels": (4, 3)}


def test_forward_gives_the_loss_first_and_everything_else_detached() -> None:
    shares = parts.vq_sign()(parts.batch_of())
    assert next(iter(shares)) == "loss"
    torch.testing.assert_close(shares["loss"], shares["l_cp"] + shares["l_q"])
    assert [name for name, value in shares.items() if value.requires_grad] == ["loss"]


@pytest.mark.parametrize("quantizer", [{}, FSQ], ids=["codebook", "fsq"])
def test_every_part_learns_from_the_loss(quantizer: dict) -> None:
    model = parts.vq_sign(parts.vq_config(quantizer=quantizer))
    model(parts.batch_of())["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("quantizer", [{"update": "ema"}, FSQ], ids=["ema", "fsq"])
def test_encoding_is_the_same_for_one_video_and_for_many_and_changes_nothing(quantizer: dict) -> None:
    model = parts.vq_sign(parts.vq_config(quantizer=quantizer))
    batch = parts.batch_of()
    model.initialize_codebook([batch])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    characters, counts = model.eval().encode(batch.frames, batch.frame_counts)
    assert len(torch.unique(characters)) > 2
    alone = [
        model.encode(video, torch.tensor([len(video)]))[0]
        for video in batch.frames.split(batch.frame_counts.tolist())
    ]
    assert torch.equal(torch.cat(alone), characters)
    assert counts.tolist() == [8, 5, 7, 4]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_start_uses_real_videos_only() -> None:
    model, other = (parts.vq_sign(parts.vq_config(quantizer={"kmeans_start": True})) for _ in range(2))
    batch = parts.batch_of()
    model.initialize_codebook([replace(batch, is_real=torch.tensor([True, True, False, False]))])
    other.initialize_codebook([parts.batch_of(lengths=parts.LENGTHS[:2])])
    torch.testing.assert_close(model.quantizer.codebook, other.quantizer.codebook)
    with pytest.raises(UsageError, match="no video"):
        model.initialize_codebook([])


def test_a_batch_without_frames_is_refused() -> None:
    with pytest.raises(UsageError, match="no frames"):
        parts.vq_sign()(replace(parts.batch_of(), frames=None))


@pytest.mark.parametrize("quantizer", [{}, {"update": "ema", "decay": 0.9}, FSQ])
def test_training_lowers_the_loss(quantizer: dict) -> None:
    model, batch = (
        parts.vq_sign(
            parts.vq_config(encoder={"subtract_video_mean": True}, quantizer=quantizer, negatives=0)
        ),
        parts.batch_of(lengths=parts.LENGTHS[:3]),
    )
    model.initialize_codebook([batch])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
