"""A tiny model and loader for the training tests: dropout, an unused branch, an EMA buffer, a frozen part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from signllm.distributed.ranks import start_distributed
from signllm.training import loop
from signllm.training.callbacks import Callback, RunContext, Training
from signllm.training.engine import TrainingConfig
from signllm.training.training_log import TrainingLog

WIDTH = 7
FRAMES = 3
"""Frames that each video is said to have."""


@dataclass(frozen=True)
class ToyBatch:
    """This rank's samples of one global batch: x (b, WIDTH), the global batch size, and its place."""

    x: Tensor
    videos: int
    number: int
    epoch: int

    @property
    def is_real(self) -> Tensor:
        return torch.ones(len(self.x), dtype=torch.bool)

    def to(self, device: torch.device) -> ToyBatch:
        return ToyBatch(self.x.to(device), self.videos, self.number, self.epoch)


class ToyLoader:
    """Samples drawn by number: rank r of w holds the global places r, r+w, ...; never ends."""

    def __init__(
        self, *, batch_size: int, rank: int, world: int, steps_per_epoch: int = 5, seed: int = 3
    ) -> None:
        self.batch_size, self.rank, self.world, self.seed = batch_size, rank, world, seed
        self._steps_per_epoch, self._batches_read = steps_per_epoch, 0

    def batches_until(self, epoch: int) -> int:
        return max(-1, epoch * self._steps_per_epoch - self._batches_read)

    def __iter__(self) -> Iterator[ToyBatch]:
        while True:
            number = self._batches_read
            generator = torch.Generator().manual_seed(self.seed * 1000 + number)
            x = torch.randn(self.batch_size, WIDTH, generator=generator)[self.rank :: self.world]
            self._batches_read += 1
            yield ToyBatch(x, self.batch_size, number, number // self._steps_per_epoch)

    def state_dict(self) -> dict[str, int]:
        epoch, place = divmod(self._batches_read, self._steps_per_epoch)
        return {"seed": self.seed, "epoch": epoch, "samples_consumed": place * self.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._batches_read = (
            state["epoch"] * self._steps_per_epoch + state["samples_consumed"] // self.batch_size
        )


class ToyModel(nn.Module):
    """Two branches taken in turn (so one has no gradient), frozen blocks, a running mean, dropout."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Linear(WIDTH, 13)
        self.branches = nn.ModuleList([nn.Linear(13, 5), nn.Linear(13, 5)])
        self.head = nn.ModuleList([nn.Linear(5, 9), nn.Linear(9, 3)]).requires_grad_(False)
        self.head.register_buffer("table", torch.ones(4))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mean", torch.zeros(13))

    def forward(self, batch: ToyBatch) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(batch.x))
        if self.training:
            total = hidden.detach().sum(0)
            dist.all_reduce(total)
            self.mean.lerp_(total / batch.videos, 0.1)
        y = self.branches[batch.number % 2](self.dropout(hidden - self.mean))
        y = self.head[1](torch.tanh(self.head[0](y)))
        loss = (y - 0.5).pow(2).sum() / (3 * batch.videos)
        frames = torch.tensor(FRAMES * len(batch.x), dtype=torch.float64)
        return {"loss": loss, "size": y.detach().abs().sum() / batch.videos, "count/frames": frames}


class StopAt(Callback):
    """Ends training at a step, as early stopping does; the schedule is that of the full run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, training: Training, losses: Mapping[str, float]) -> None:
        if training.step >= self.step:
            self.stop_reason = f"step {self.step}"


def toy_context(run: Path) -> RunContext:
    """Return the context of a run of the toy in this process group."""
    return RunContext(run=run, stage="toy", ranks=start_distributed())


def toy_training(
    run: Path, callbacks: Sequence[Callback], *, end: int = 7, per_epoch: int = 5, resumed_step: int = 0
) -> loop._Trainer:
    """Return a training without an engine: it counts no step, writes the log, and calls the callbacks."""
    training = loop._Trainer(
        build(),
        ToyLoader(batch_size=4, rank=0, world=1, steps_per_epoch=per_epoch),
        config=TrainingConfig(steps=end),
        context=toy_context(run),
        end=end,
        callbacks=callbacks,
    )
    training.training_log = TrainingLog(run, "toy", resumed_step=resumed_step)
    return training


def advance(training: loop._Trainer, step: int) -> None:
    """Let a training of :func:`toy_training` have reached a step."""
    loader = training.batches
    assert isinstance(loader, ToyLoader)
    training.step = loader._batches_read = step
    training.epoch = (step - 1) // loader._steps_per_epoch


def build(*, dropout: float = 0.0) -> ToyModel:
    """Build the model with the same weights in every process."""
    torch.manual_seed(0)
    return ToyModel(dropout=dropout)
