"""The two sides of bench_training: a plain torch loop, and this project's, which gives way to it in turns."""

from __future__ import annotations

import cProfile
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from signllm.data.loading.batch import Batch
from signllm.training.engine import ParameterGroup, TrainingConfig, parameter_groups_of
from signllm.training.loop import _step_seed

OURS, PLAIN = "ours", "plain"
TORCH_LINEAR = functional.linear
"""As it is before ZeRO-3 puts its own in its place, for the complete process."""


class Repeated:
    """The same few batches over and over, as ``fit`` reads them; every side has its own."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.args = batches, 0

    def batches_until(self, epoch: int) -> int:
        """Return -1: these have no epochs."""
        return -1

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end."""
        for batch in cycle(self.batches):
            self.args += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches read."""
        return {"seed": 0, "epoch": 0, "samples_consumed": self.args}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raise an error: a measurement is never resumed."""
        raise NotImplementedError


class PlainLoop:
    """The same training written in torch alone: no engine, no ranks, no log.

    fp32: AdamW on the weights. bf16: weights, activations and gradients in 16 bits, AdamW on master weights
    in 32, as ZeRO has it. Losses are read once a round, so that no step waits for the GPU. DeepSpeed's linear
    map is taken out while this side runs.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        config: TrainingConfig,
        groups: Sequence[ParameterGroup],
        device: torch.device,
    ) -> None:
        self.model, self.config, self.device = model.to(device).train(), config, device
        self.stream, self.step = cycle(batches), 0
        self.counted: dict[str, float] = {}
        if config.precision == "bf16":
            for p in model.parameters():
                p.data = p.data.bfloat16()
        self.trained: list[Tensor] = []
        self.stepped: list[Tensor] = []
        rows = []
        for group in parameter_groups_of(model, groups):
            stepped = [
                p.detach().float().requires_grad_() if config.precision == "bf16" else p
                for p in group.parameters
            ]
            self.trained += group.parameters
            self.stepped += stepped
            rate = config.learning_rate if group.learning_rate is None else group.learning_rate
            rows.append({"params": stepped, "lr": rate})
        self.optimizer = torch.optim.AdamW(
            rows,
            betas=config.betas,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def take(self, steps: int) -> list[float]:
        """Take optimizer steps; return their losses."""
        with patch.object(functional, "linear", TORCH_LINEAR):
            losses = [self.one_step() for _ in range(steps)]
        return torch.stack(losses).tolist()

    def one_step(self) -> Tensor:
        """Take one optimizer step; return its loss, still on the device."""
        torch.manual_seed(_step_seed(self.config.seed, self.step, 0))
        shares = self.model(next(self.stream).to(self.device))
        shares["loss"].backward()
        self.update()
        self.step += 1
        for name in ("tokens", "operations"):
            self.counted[name] = self.counted.get(name, 0.0) + float(shares[f"count/{name}"])
        return shares["loss"].detach()

    def update(self) -> None:
        """Clip, step the optimizer, forget the gradients."""
        masters = self.config.precision == "bf16"
        if masters:
            for master, p in zip(self.stepped, self.trained, strict=True):
                master.grad = None if p.grad is None else p.grad.float()
                p.grad = None
        torch.nn.utils.clip_grad_norm_(self.stepped, self.config.gradient_clip)
        self.optimizer.step()
        if masters:
            torch._foreach_copy_([p.data for p in self.trained], [m.detach() for m in self.stepped])
        self.optimizer.zero_grad(set_to_none=True)


@dataclass
class Side:
    """What is measured of one side: per counted round, and of its memory on a GPU.

    Attributes:
        seconds: of each round, on the wall.
        cpu_seconds: of each round, of this process.
        losses: of every step, those that warm up included.
        kept_bytes: bytes allocated between its rounds.
        peak_bytes: the most bytes allocated at once, without those of the other side.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    kept_bytes: int = 0
    peak_bytes: int = 0
    profile: cProfile.Profile | None = None


class Rounds:
    """Both sides in turns: after every ``steps`` of ours, as many of the plain loop; the first warm up.

    Args:
        plain: the other side.
        device: of both.
        steps: of a round.
        warm: rounds that are not counted.
        profiled: the round to profile, from 0, which is not counted; None profiles none.
    """

    def __init__(
        self, plain: PlainLoop, device: torch.device, *, steps: int, warm: int, profiled: int | None
    ) -> None:
        self.plain, self.device, self.steps, self.warm, self.profiled = plain, device, steps, warm, profiled
        self.sides = {OURS: Side(), PLAIN: Side()}
        self.round = 0
        self._begun = self._cpu_begun = 0.0
        self._bytes = 0

    def begin(self, side: str) -> None:
        """Begin a round of a side."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._bytes = torch.cuda.memory_allocated(self.device)
        if self.round == self.profiled:
            self.sides[side].profile = cProfile.Profile()
            self.sides[side].profile.enable()
        self._begun, self._cpu_begun = time.perf_counter(), time.process_time()

    def end(self, side: str) -> None:
        """End a round of a side, and count it unless it was a warm-up or profiled."""
        side_record = self.sides[side]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds, cpu_seconds = time.perf_counter() - self._begun, time.process_time() - self._cpu_begun
        if side_record.profile is not None and self.round == self.profiled:
            side_record.profile.disable()
        if self.device.type == "cuda":
            most = torch.cuda.max_memory_allocated(self.device) - self._bytes
            side_record.peak_bytes = max(side_record.peak_bytes, side_record.kept_bytes + most)
            side_record.kept_bytes += torch.cuda.memory_allocated(self.device) - self._bytes
        if self.round >= self.warm and self.round != self.profiled:
            side_record.seconds.append(seconds)
            side_record.cpu_seconds.append(cpu_seconds)

    def after_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take the plain loop's turn when ours has had its own: what ``fit`` calls after every step."""
        self.sides[OURS].losses.append(float(metrics["loss"]))
        if step % self.steps:
            return
        self.end(OURS)
        self.begin(PLAIN)
        losses = self.plain.take(self.steps)
        self.end(PLAIN)
        self.sides[PLAIN].losses += losses
        self.print_round()
        self.round += 1
        self.begin(OURS)

    def print_round(self) -> None:
        """Print the round, so that an interrupted run has printed its measurements so far."""
        kind = "warm-up" if self.round < self.warm else "profiled" if self.round == self.profiled else ""
        if kind:
            print(f"round {self.round}: {kind}", flush=True)
            return
        times = {name: side.seconds[-1] / self.steps for name, side in self.sides.items()}
        times_text = ", ".join(f"{name} {seconds:.4f} s/step" for name, seconds in times.items())
        print(f"round {self.round}: {times_text}, ratio {times[PLAIN] / times[OURS]:.3f}", flush=True)
