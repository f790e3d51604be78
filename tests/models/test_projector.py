"""The projector: two layers, and outputs that start at the scale of the text embeddings."""

from __future__ import annotations

import pytest
import torch

from signllm.models.projector import Projector, ProjectorConfig


@pytest.mark.parametrize("rms", [0.02, 1.7])
def test_initial_outputs_have_the_requested_scale(rms: float) -> None:
    torch.manual_seed(0)
    model = Projector(ProjectorConfig(hidden=64), 32, 48)
    model.scale_to(rms)
    result = model(torch.nn.functional.layer_norm(torch.randn(500, 32), (32,)))
    assert result.shape == (500, 48)
    assert float(result.detach().square().mean().sqrt()) == pytest.approx(rms, rel=0.1)


def test_it_is_linear_relu_linear() -> None:
    model = Projector(ProjectorConfig(), 4, 5)
    x = torch.randn(3, 4)
    hidden = (x @ model.first.weight.T + model.first.bias).clamp(min=0)
    torch.testing.assert_close(model(x), hidden @ model.second.weight.T + model.second.bias)
