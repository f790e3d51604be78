"""Fixtures that run a test with both implementations, torch and Triton (interpreted without a GPU)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from signllm.kernels.implementation import Implementation, force_implementation


@pytest.fixture(params=["torch", "triton"])
def implementation(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Run the test under each implementation."""
    if request.param == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed (extra `test`)")
    with force_implementation(request.param):
        yield request.param


@pytest.fixture
def device() -> torch.device:
    """Return the CUDA device if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
