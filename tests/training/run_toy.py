"""Train the toy model as processes of their own: what the tests start, kill and start again.

One JSON argument: a list of orders {run, config of TrainingConfig, dropout, trouble {kind, at, rank},
saved_head: the frozen part is one that checkpoints keep, and losses are validated on two batches, validated:
the losses that rank 0 validates after each step, until: a step to stop at},
carried out one after the other by the same ranks. How each ended is left in ``RUN/rank-R.json``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from signllm.distributed.local_ranks import leave_process_group
from signllm.distributed.ranks import start_distributed
from signllm.training.engine import ParameterGroup, TrainingConfig
from signllm.training.loop import fit
from signllm.training.standard_callbacks import standard_callbacks
from signllm.validation import from_plain
from tests.training.toy import StopAt, ToyBatch, ToyLoader, ToyModel, build, toy_context

SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "usr2": signal.SIGUSR2,
    "freeze": signal.SIGSTOP,
}


class Trouble(ToyModel):
    """The toy with an accident at batch ``at`` on ``rank``: signal, exception, NaN, a collective too many."""

    kind, at, rank = "none", -1, 0

    def forward(self, batch: ToyBatch) -> dict[str, Tensor]:
        if batch.number == self.at and int(os.environ["RANK"]) == self.rank:
            if self.kind in SIGNALS:
                os.kill(os.getpid(), SIGNALS[self.kind])
            if self.kind == "extra":
                dist.broadcast(torch.zeros(1), src=1 - self.rank)
            if self.kind == "raise":
                raise LookupError("video 17 is broken")
            if self.kind == "gradient":
                spoilt = super().forward(batch)
                spoilt["loss"].register_hook(lambda gradient: gradient * float("nan"))
                return spoilt
            if self.kind == "nan":
                shares = super().forward(batch)
                return shares | {"loss": shares["loss"] * float("nan")}
        return super().forward(batch)


class Starving(ToyLoader):
    """The toy's loader, whose batch ``at`` never comes."""

    at = -1

    def __iter__(self) -> Iterator[ToyBatch]:
        for batch in super().__iter__():
            while batch.number == self.at:
                time.sleep(1)
            yield batch


def parameter_groups(model: ToyModel) -> list[ParameterGroup]:
    """Two groups of one learning rate: DeepSpeed keeps the moments of each apart."""
    body = list(model.body.parameters())
    others = [p for p in model.parameters() if not any(p is own for own in body)]
    return [ParameterGroup(name="others", parameters=others), ParameterGroup(name="body", parameters=body)]


def carry_out(order: dict) -> dict:
    """Do one order and say how it ended."""
    settings = {"batch_size": 4, "log_every": 1, "tensorboard": False, "timeout_s": 300.0} | order["config"]
    config = from_plain(TrainingConfig, settings, where="the order")
    ranks = start_distributed(timeout_s=config.timeout_s)
    model = build(dropout=order.get("dropout", 0.0))
    if "trouble" in order:
        model.__class__ = type("Accident", (Trouble,), order["trouble"])
    model.head.saved_when_frozen = order.get("saved_head", False)
    loader = ToyLoader(batch_size=config.videos_per_forward, rank=ranks.rank, world=ranks.world)

    if order.get("trouble", {}).get("kind") == "starve" and ranks.rank == order["trouble"]["rank"]:
        loader.__class__ = type("Starving", (Starving,), {"at": order["trouble"]["at"]})

    validated = order.get("validated")

    def validate(model: nn.Module, step: int) -> dict[str, float]:
        if validated is not None:
            return {"loss": validated[step - 1] - ranks.rank * step}  # other ranks see another trend
        held_out = ToyLoader(batch_size=config.videos_per_forward, rank=ranks.rank, world=ranks.world, seed=5)
        return {"loss": sum(float(model(batch)["loss"]) for batch in islice(held_out, 2))}

    is_validated = model.head.saved_when_frozen or validated is not None
    callbacks = standard_callbacks(config, validate if is_validated else None)
    if order.get("until") is not None:
        callbacks.append(StopAt(order["until"]))
    try:
        outcome = fit(
            model,
            loader,
            config=config,
            context=toy_context(Path(order["run"])),
            parameter_groups=parameter_groups(model),
            callbacks=callbacks,
        )
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    frozen_bytes = sum(
        max(p.numel(), p.ds_tensor.numel() if hasattr(p, "ds_tensor") else 0) for p in model.head.parameters()
    )
    return {
        "step": outcome.step,
        "preempted": outcome.preempted,
        "stop_reason": outcome.stop_reason,
        "frozen_held": frozen_bytes,
    }


def main() -> None:
    """Carry out the orders of the command line."""
    for order in json.loads(sys.argv[1]):
        ended = carry_out(order)
        path = Path(order["run"]) / f"rank-{os.environ['RANK']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(ended))
    leave_process_group()


if __name__ == "__main__":
    main()
