"""One rank of a training run whose collectives are counted; :mod:`benchmarks.traffic` starts them.

``python -m benchmarks.traffic_rank ORDERS`` (JSON) with ``RANK``, ``WORLD_SIZE`` and the rendezvous set
trains a small SignLLM with the project's own loop. A dispatch mode sees every collective that reaches torch,
forward and backward, with its tensors; the innermost caller tells DeepSpeed's from those of the model and
the loop.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.after_step import AfterStep, run_context
from signllm.cluster.planning.model_tensors import list_weights
from signllm.distributed.local_ranks import leave_process_group
from signllm.distributed.ranks import Ranks, start_distributed
from signllm.training.engine import TrainingConfig, deepspeed_settings, import_deepspeed
from signllm.training.loop import fit
from tests.models import parts
from tests.models.on_ranks import sign_llm

WARM_UP = 2
"""Steps before counting: in the first DeepSpeed records in which order weights are needed."""
VIDEOS = len(parts.LENGTHS)
"""In a forward pass of all ranks."""
KINDS = {
    "allreduce_": ("all-reduce", 0),
    "allgather_": ("all-gather", 0),
    "_allgather_base_": ("all-gather", 0),
    "reduce_scatter_": ("reduce-scatter", 1),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
    "reduce_": ("reduce", 0),
    "broadcast_": ("broadcast", 0),
}
"""Collectives of torch by the name of their operator, and which argument holds all ranks' elements."""


@dataclass(frozen=True)
class Order:
    """The task of a rank: where, with which language model and ZeRO file, how often forward per step."""

    folder: str
    llm: str
    deepspeed: str
    precision: str = "fp32"
    accumulation: int = 1
    recompute: bool = False


class CollectiveCounter(TorchDispatchMode):
    """Numbers of collectives by (caller, kind, bytes) since the start."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[tuple[str, str, int]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count a collective, and let it and everything else pass."""
        if func.namespace == "c10d" and (name := func._schema.name.removeprefix("c10d::")) in KINDS:
            kind, place = KINDS[name]
            size = sum(t.nbytes for t in tree_leaves(args[place]) if isinstance(t, Tensor))
            self.operations[_caller(), kind, size] += 1
        return func(*args, **(kwargs or {}))


def _caller() -> str:
    """Return whose collective this is: ``zero`` if DeepSpeed is nearer on the stack than this project."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if owner in ("deepspeed", "signllm"):
            return "zero" if owner == "deepspeed" else "signllm"
        frame = frame.f_back  # type: ignore[assignment]
    return "signllm"


def write_language_model(folder: Path) -> Path:
    """Write the random LLaMA of two layers that the tests use."""
    return parts.save_language_model(folder)


class SameBatch:
    """Batches that always contain the same videos: this rank's part of them."""

    def __init__(self, ranks: Ranks) -> None:
        self.batch = parts.batch_of(rank=ranks.rank, world=ranks.world)

    def batches_until(self, epoch: int) -> int:
        """There is no epoch."""
        return 1_000_000

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.batch

    def state_dict(self) -> dict[str, int]:
        """Nothing advances."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing advances."""


def main() -> None:
    """Carry out the orders of the command line."""
    for order in json.loads(sys.argv[1]):
        carry_out(Order(**order))
    leave_process_group()


def carry_out(order: Order) -> None:
    """Train, and write operations and bytes of one step, and the weights that the plan is to be made from."""
    config = TrainingConfig(
        deepspeed=order.deepspeed,
        precision=order.precision,
        steps=WARM_UP + 2,
        batch_size=VIDEOS * order.accumulation,
        accumulation=order.accumulation,
        save_every=1000,
        tensorboard=False,
    )
    ranks = start_distributed()
    import_deepspeed()
    settings = deepspeed_settings(config, world=ranks.world)
    dtype = "bf16" if order.precision == "bf16" else "fp32"
    model = sign_llm(Path(order.llm), deepspeed=settings, recompute=order.recompute, dtype=dtype)
    weights = list_weights(model)
    run = Path(order.folder) / "run"
    marks: list[Counter[tuple[str, str, int]]] = []
    with CollectiveCounter() as counter:
        fit(
            model,
            SameBatch(ranks),
            config=config,
            context=run_context(run, "traffic"),
            callbacks=[AfterStep(lambda step, losses: marks.append(counter.operations.copy()))],
        )
    operations = marks[WARM_UP] - marks[WARM_UP - 1]
    record: dict[str, Any] = {
        "counted": [
            {"who": who, "kind": kind, "bytes": size, "operations": times}
            for (who, kind, size), times in sorted(operations.items())
        ],
        "weights": [dataclasses.asdict(weight) for weight in weights],
    }
    record["model_states"] = json.loads((run / "startup.json").read_text())["held_bytes"]
    (Path(order.folder) / f"rank-{ranks.rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main()
