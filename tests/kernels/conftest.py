"""Both implementations under the same tests: torch, and Triton (interpreted where there is no GPU)."""

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
    """CUDA where there is one: the same tests, the real thing."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
