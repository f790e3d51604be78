"""A trace of a few training steps by torch's profiler: what ran when, on the CPU and on the GPU.

``RUN/profile/STAGE-rank-R.STEP.pt.trace.json`` has the Chrome trace format: https://ui.perfetto.dev opens it,
and TensorBoard's profiler plugin reads the folder. Only the first eight ranks are traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from signllm.atomic_files import atomic_file
from signllm.training.callbacks import RunContext

WARM_UP_STEPS = 5
"""Steps before the trace begins, so that allocations, autotuning and the first reads from disk are over."""
TRACED_RANKS = 8


def _nothing() -> None:
    pass


@contextmanager
def trace_steps(context: RunContext, *, first: int, end: int, steps: int) -> Iterator[Callable[[], None]]:
    """Yield a function to call after every step; it traces ``steps`` of them after a warm-up.

    Tracing does not change the training result.

    Args:
        context: run folder, stage and ranks.
        first: the step that training starts from.
        end: the last step. A run that is shorter than warm-up and trace together traces its last steps.
        steps: number of steps to trace; 0 traces nothing.
    """
    if steps == 0 or first >= end or context.ranks.rank >= TRACED_RANKS:
        yield _nothing
        return
    warm_up = max(0, min(WARM_UP_STEPS, end - first - steps))
    name = f"{context.stage}-rank-{context.ranks.rank}.{first + warm_up + 1}.pt.trace.json"
    path = context.run / "profile" / name

    def write(profiler: torch.profiler.profile) -> None:
        with atomic_file(path) as unfinished:
            profiler.export_chrome_trace(str(unfinished))

    schedule = torch.profiler.schedule(
        wait=max(0, warm_up - 1), warmup=min(1, warm_up), active=min(steps, end - first), repeat=1
    )
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write) as profiler:
        yield profiler.step
