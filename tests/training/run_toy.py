"""Train the toy model as a process of its own: what the tests start, kill and start again under torchrun."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from signllm.training.engine import TrainingConfig, start_distributed, stop_distributed
from signllm.training.loop import fit
from tests.training.toy import ToyBatch, ToyLoader, ToyModel, build


class Trouble(ToyModel):
    """The toy model with an accident at a given batch, on rank ``rank``: kill, raise, nan or term."""

    kind, at, rank = "none", -1, 0

    def forward(self, batch: ToyBatch) -> dict:
        if batch.number == self.at and int(os.environ["RANK"]) == self.rank:
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "raise":
                raise LookupError("video 17 is broken")
            if self.kind == "nan":
                batch.x.fill_(float("nan"))
            if self.kind == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            if self.kind == "usr2":
                os.kill(os.getpid(), signal.SIGUSR2)
        return super().forward(batch)


def main() -> None:
    """Read one JSON argument: run, config (of TrainingConfig), dropout, trouble {kind, at, rank}."""
    order = json.loads(sys.argv[1])
    config = TrainingConfig(**{"batch_size": 4, "log_every": 1, "tensorboard": False, "timeout_s": 60} | order["config"])
    ranks = start_distributed(timeout_s=config.timeout_s)
    model = build(dropout=order.get("dropout", 0.0))
    if "trouble" in order:
        model.__class__ = type("Accident", (Trouble,), order["trouble"])
    loader = ToyLoader(batch_size=config.videos_per_forward, rank=ranks.rank, world=ranks.world)
    outcome = fit(model, loader, config=config, run=Path(order["run"]), stage="toy")
    if ranks.rank == 0:
        sys.stdout.write(json.dumps({"step": outcome.step, "preempted": outcome.preempted}) + "\n")
    stop_distributed()


if __name__ == "__main__":
    main()
