"""Kill training at random moments, start it again, and compare what comes out with a run left alone.

The ranks are forked from a process that has torch and DeepSpeed loaded, so a start costs a second. A plan
says where a signal strikes (start-up, a training step, validation, saving), which one, and which ranks; the
moment within it is drawn too. One folder is trained on by one start after the other until it is done; then
its log and its weights must be those of the run left alone, to the last bit.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from signllm.distributed.preemption import preemption_flag
from signllm.training import checkpoint, loop
from signllm.training.checkpoint import last_checkpoint, load_moments, load_weights, read_state
from signllm.training.training_log import read_log
from tests.training import run_toy, toy
from tests.training.forks import on_forked_ranks, preload

PLACES = {"start-up": 1.0, "training": 0.02, "validation": 0.01, "saving": 0.04}
"""Where a signal strikes, and within how many seconds after that began."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2)
log = logging.getLogger(__name__)
STEPS = 24
CLOCKS = {"seconds", "videos_per_s", "frames_per_s", "data_wait", "save_s", "memory_gib", "memory_mean_gib"}
CONFIG = {"steps": STEPS, "learning_rate": 0.02, "save_every": 3, "validate_every": 4, "batch_size": 4}


@dataclass(frozen=True)
class Plan:
    """A signal to come: ``number`` at the ``nth`` beginning of ``place``, ``delay_s`` later, to ``ranks``."""

    place: str
    number: signal.Signals
    nth: int
    delay_s: float
    ranks: tuple[int, ...]

    @property
    def kind(self) -> tuple[str, str]:
        """Where, and which signal: what a table counts by."""
        return self.place, self.number.name


@dataclass(frozen=True)
class Strike:
    """What a plan did: the steps of the last whole checkpoint before and after it.

    Attributes:
        plan: what was planned.
        before: step of the last whole checkpoint, 0 where there is none.
        after: the same, when the processes had ended.
        reached: the last step that this start took, as the log tells.
        hung: ranks were still there after ``ENDS_WITHIN_S``.
        struck: it came before the run was done.
    """

    plan: Plan
    before: int
    after: int
    reached: int
    hung: bool
    struck: bool

    @property
    def lost(self) -> bool:
        """Whether a saved state is gone, or an orderly end did not save the step that it came to."""
        orderly = self.plan.number != signal.SIGKILL and self.struck
        return self.after < self.before or (orderly and self.after < self.reached)


def draw(rng: random.Random, ranks: int, place: str, number: signal.Signals) -> Plan:
    """Draw the moment and the ranks; SIGKILL comes to one, the others to one or to all."""
    numbers = (rng.randrange(ranks),)
    chosen = numbers if number == signal.SIGKILL or rng.random() < 0.5 else tuple(range(ranks))
    if place == "saving":
        chosen = (0,)  # who writes
    return Plan(place, number, rng.randint(1, 4), rng.uniform(0.0, PLACES[place]), chosen)


def start(run: Path, *, ranks: int, deepspeed: str, plan: Plan | None = None) -> bool:
    """Train the toy in ``run`` by forked ranks until they end; say whether they hung."""
    order = {
        "run": str(run),
        "dropout": 0.3,
        "saved_head": True,
        "config": {**CONFIG, "deepspeed": deepspeed},
    }

    def be_rank(rank: int) -> None:
        with preemption_flag():
            if plan is not None and rank in plan.ranks:
                _lie_in_wait(plan)
            ended = run_toy.carry_out(order)
        (run / f"rank-{rank}.json").write_text(json.dumps(ended))

    return on_forked_ranks(be_rank, ranks, run.parent)[1]


def _lie_in_wait(plan: Plan) -> None:
    """Let the signal of a plan come to this process."""
    left = [plan.nth if plan.place in ("training", "validation") else 1]

    def began() -> None:
        left[0] -= 1
        if left[0] == 0:
            timer = threading.Timer(plan.delay_s, os.kill, (os.getpid(), plan.number))
            timer.daemon = True
            timer.start()

    forward, sync = toy.ToyModel.forward, checkpoint.sync

    def counted(model: toy.ToyModel, batch: toy.ToyBatch) -> dict[str, torch.Tensor]:
        if plan.place == ("training" if model.training else "validation"):
            began()
        return forward(model, batch)

    def slow_sync(path: Path) -> None:
        time.sleep(0.005)
        sync(path)

    def saving(write: Callable[..., Path], *args: Any, **named: Any) -> Path:
        began()
        return write(*args, **named)

    toy.ToyModel.forward = counted  # type: ignore[method-assign]
    if plan.place == "saving":
        checkpoint.sync = slow_sync  # a toy is written in no time
        loop.save = functools.partial(saving, loop.save)  # type: ignore[assignment]
    elif plan.place == "start-up":
        began()


def saved_step(run: Path) -> int:
    """Return the step of the last whole checkpoint, or 0."""
    last = last_checkpoint(run)
    return 0 if last is None else read_state(last).step


def result(run: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Return what a finished run must be equal in: its log without clocks, its last checkpoint's tensors."""
    lines = [{k: v for k, v in line.items() if k not in CLOCKS} for line in read_log(run)]
    last = last_checkpoint(run)
    assert last is not None
    best = {"value": torch.tensor((read_state(last).best or {})["value"])}
    return lines, load_weights(last) | load_moments(last) | best


def equal(alone: Path, run: Path) -> bool:
    """Whether two finished runs have the same log and the same bits; the first difference is printed."""
    (lines, tensors), (found_lines, last) = result(alone), result(run)
    for expected, line in itertools.zip_longest(lines, found_lines):
        if line != expected:
            log.warning("the log has %s where the run left alone has %s", line, expected)
            return False
    wrong = tensors.keys() ^ last.keys() or {n for n in tensors if not torch.equal(tensors[n], last[n])}
    if wrong:
        log.warning("not the bits of the run left alone: %s", sorted(wrong))
    return not wrong


def strike(run: Path, plan: Plan, *, ranks: int, deepspeed: str) -> Strike:
    """Carry out a plan on a run and say what it did."""
    before, logged = saved_step(run), read_log(run)
    hung = start(run, ranks=ranks, deepspeed=deepspeed, plan=plan)
    after, now = saved_step(run), read_log(run)
    # Before its first step a start leaves the log as it was: lines of steps that an earlier death took along.
    reached = before if now == logged else max((line["step"] for line in now), default=0)
    return Strike(plan, before, after, reached, hung, struck=after < STEPS)


def strike_until(
    folder: Path, plans: list[Plan], *, ranks: int, deepspeed: str, within_s: float = math.inf
) -> tuple[list[Strike], list[bool]]:
    """Carry out plans one after the other; return what they did, and whether each finished run is equal.

    A run that is done is compared and begun anew; the last is finished without a signal. No plan is begun
    after ``within_s``.
    """
    preload()
    begun = time.monotonic()
    alone, run = folder / "alone", folder / "killed"
    start(alone, ranks=ranks, deepspeed=deepspeed)
    strikes, same = [], []
    for plan in plans:
        if time.monotonic() - begun > within_s:
            break
        strikes.append(strike(run, plan, ranks=ranks, deepspeed=deepspeed))
        log.info("%s", strikes[-1])
        if saved_step(run) >= STEPS:
            start(run, ranks=ranks, deepspeed=deepspeed)  # a validation that was left
            same.append(equal(alone, run))
            shutil.rmtree(run)
    start(run, ranks=ranks, deepspeed=deepspeed)
    same.append(equal(alone, run))
    return strikes, same
