"""A callback of the training loop that calls a function after each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from signllm.distributed.ranks import start_distributed
from signllm.training.callbacks import Callback, RunContext, Training


class AfterStep(Callback):
    """Calls ``act`` with the step and its losses after each step."""

    def __init__(self, act: Callable[[int, Mapping[str, float]], object]) -> None:
        self.act = act

    def on_step(self, training: Training, losses: Mapping[str, float]) -> None:
        """Call the function."""
        self.act(training.step, losses)


def run_context(run: Path, stage: str) -> RunContext:
    """Return the context of a run on the ranks that this process belongs to."""
    return RunContext(run=run, stage=stage, ranks=start_distributed())
