"""Seconds of one call: CUDA events on a GPU, the clock elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Run a call and return its seconds and result: CUDA events on a GPU, the clock elsewhere."""
    if device.type != "cuda":
        begin = time.perf_counter()
        result = call()
        return time.perf_counter() - begin, result
    torch.cuda.synchronize(device)
    begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin_event.record()
    result = call()
    end_event.record()
    torch.cuda.synchronize(device)
    return begin_event.elapsed_time(end_event) / 1000, result
