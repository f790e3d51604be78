"""Context prediction: equal to its definition as loops, and independent of padding and of ranks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from signllm.errors import UsageError
from signllm.models.vq_sign.context_predictor import ContextPredictor, ContextPredictorConfig
from tests.models import parts

COUNTS = torch.tensor([8, 5, 7, 2])


def predictor(**changes: object) -> ContextPredictor:
    torch.manual_seed(0)
    return ContextPredictor(ContextPredictorConfig(**{"negatives": 0, "exclude": 1} | changes), 6).double()


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(22, 6, dtype=torch.float64), torch.randn(22, 6, dtype=torch.float64)


def by_definition(model: ContextPredictor, codes: torch.Tensor, z: torch.Tensor, real: list[bool]) -> float:
    """Return L_cp by its definition, position by position, with vectors of other videos as negatives."""
    parted_codes, parted_z = codes.split(COUNTS.tolist()), z.split(COUNTS.tolist())
    loss = 0.0
    for ahead, head in enumerate(model.heads, start=1):
        terms = []
        for video in [v for v in range(4) if real[v]]:
            others = torch.cat([parted_z[v] for v in range(4) if v != video and real[v]])
            for t in range(len(parted_codes[video]) - ahead):
                h = model.context(parted_codes[video][None, : t + 1])[0][0, -1]
                predicted = head(h) / math.sqrt(6)
                hit = logsigmoid(parted_z[video][t + ahead] @ predicted)
                terms.append(hit + model.config.negative_weight * logsigmoid(-(others @ predicted)).mean())
        loss -= torch.stack(terms).mean().item()
    return loss


@pytest.mark.parametrize("real", [[True] * 4, [True, False, True, True]])
def test_the_loss_is_the_definition(real: list[bool]) -> None:
    model, (codes, z) = predictor(negative_weight=1.5), vectors()
    batch = replace(parts.batch_of(), is_real=torch.tensor(real))
    result = model(codes, z, COUNTS, batch)["l_cp"].item()
    assert result == pytest.approx(by_definition(model, codes, z, real), rel=1e-5)


def test_the_context_sees_nothing_of_the_future() -> None:
    model, (codes, _) = predictor(), vectors()
    changed = codes.clone()
    changed[5:8] += 1.0  # the first video's last three
    before, after = model._context(codes, COUNTS), model._context(changed, COUNTS)
    torch.testing.assert_close(before[:5], after[:5])
    torch.testing.assert_close(before[8:], after[8:])
    assert (before[5:8] - after[5:8]).abs().min() > 0


def test_gradient_reaches_codes_targets_and_negatives() -> None:
    model, (codes, z) = predictor(), vectors()
    codes.requires_grad_(), z.requires_grad_()
    model(codes, z, COUNTS, parts.batch_of())["l_cp"].backward()
    assert (z.grad.abs().sum(dim=1) > 0).all()
    last = COUNTS.cumsum(0) - 1
    reached = codes.grad.abs().sum(dim=1) > 0
    assert not reached[last].any()  # the last position predicts nothing
    assert reached.sum() == 22 - 4


def test_all_zero_vectors_give_the_closed_form() -> None:
    model = predictor(negative_weight=2.0)
    zeros = torch.zeros(22, 6, dtype=torch.float64)
    result = model(zeros, zeros, COUNTS, parts.batch_of())
    assert result["l_cp"].item() == pytest.approx(3 * (1 + 2.0) * math.log(2), rel=1e-6)


def test_draws_depend_on_epoch_and_batch_and_on_nothing_else() -> None:
    model, (codes, z) = predictor(negatives=3), vectors()
    batch = parts.batch_of()
    loss = [
        model(codes, z, COUNTS, b)["l_cp"].item()
        for b in (batch, batch, replace(batch, epoch=1), replace(batch, seed=8))
    ]
    assert loss[0] == loss[1]
    assert len(set(loss)) == 3


def test_it_learns_to_predict_a_cycle() -> None:
    torch.manual_seed(0)
    cycle = torch.nn.functional.one_hot(torch.arange(6), 6).float() * 4
    codes = torch.cat([cycle.roll(-shift, 0).repeat(4, 1)[:20] for shift in range(4)])
    model = ContextPredictor(ContextPredictorConfig(negatives=0, same_video_share=0.5, exclude=0), 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        result = model(codes, codes, torch.tensor([20] * 4), parts.batch_of())
        optimizer.zero_grad()
        result["l_cp"].backward()
        optimizer.step()
    assert result["cp_accuracy"] > 0.9


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="steps"):
        ContextPredictorConfig(steps=0)
    with pytest.raises(UsageError, match="same_video_share"):
        ContextPredictorConfig(same_video_share=1.5)
