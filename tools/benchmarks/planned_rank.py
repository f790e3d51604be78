"""One rank of a training run whose memory is measured; :mod:`benchmarks.planned` starts them.

``python -m benchmarks.planned_rank ORDERS`` (JSON) with ``RANK``, ``WORLD_SIZE`` and the rendezvous set
trains SignLLM with the project's own loop. On a GPU torch's allocator tells the peak of a step. On a CPU the
C library is asked after every operator how much is allocated, by any thread, gloo's own buffers included;
what was there before is taken off. What an operator gives back before it ends is not seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.after_step import AfterStep, run_context
from benchmarks.training_model import Size, Work, build, draw_batch
from benchmarks.training_sides import Repeated
from signllm.config import FinetuneConfig
from signllm.distributed.local_ranks import leave_process_group
from signllm.distributed.ranks import start_distributed
from signllm.stages.parameter_groups import parameter_groups
from signllm.training.engine import deepspeed_settings, import_deepspeed
from signllm.training.loop import fit
from signllm.validation import from_plain

STEPS = 3
"""The last is measured: by then Adam has its moments and DeepSpeed knows the order of the weights."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The task of a rank.

    Attributes:
        folder: for its files.
        llm: folder of the language model, without weights.
        config: of stage 3, as in ``config.json``.
        llama: the shape of the language model.
        videos: of a forward pass of this rank.
        frames: of each.
        text_tokens: of each, end included.
    """

    folder: str
    llm: str
    config: Mapping[str, Any]
    llama: Mapping[str, Any]
    videos: int
    frames: int
    text_tokens: int


class Mallinfo2(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns; ``uordblks`` in arenas and ``hblkhd`` in mappings are in use."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    )


class CpuPeak(TorchDispatchMode):
    """The most that was allocated here after an operator of the last step, less what was before."""

    def __init__(self) -> None:
        super().__init__()
        self.mallinfo2 = ctypes.CDLL(None).mallinfo2
        self.mallinfo2.restype = Mallinfo2
        self.most = self.in_step = 0
        self.before = self.allocated()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator, and record the memory after it."""
        out = func(*args, **(kwargs or {}))
        self.in_step = max(self.in_step, self.allocated())
        return out

    def allocated(self) -> int:
        """Return the bytes in use."""
        usage = self.mallinfo2()
        return int(usage.uordblks + usage.hblkhd)

    def mark(self) -> None:
        """End a step: the next one is measured separately."""
        self.most, self.in_step = self.in_step - self.before, 0


class GpuPeak(contextlib.nullcontext[None]):
    """The most that torch had allocated on this GPU in the last step."""

    most = 0

    def mark(self) -> None:
        """End a step: the next one is measured separately."""
        torch.cuda.synchronize()
        self.most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Carry out the orders of the command line: a tiny one first, which imports and sets up what stays."""
    for order in json.loads(sys.argv[1]):
        carry_out(Order(**order))
        gc.collect()
    leave_process_group()


def carry_out(order: Order) -> None:
    """Train, and write the peak of the last step."""
    config: FinetuneConfig = from_plain(FinetuneConfig, order.config, where="the order")
    ranks = start_distributed()
    import_deepspeed()
    peak = GpuPeak() if ranks.device.type == "cuda" else CpuPeak()
    training = replace(config.training, steps=STEPS, epochs=None, save_every=1000, tensorboard=False)
    settings = deepspeed_settings(training, world=ranks.world)
    work = Work(videos=order.videos, frames=order.frames, text_tokens=order.text_tokens)
    size = Size(recipe="", llama=order.llama, work={})
    batch = draw_batch(config, size, work, signs="video", spread=0.0, number=ranks.rank)
    model = build(config, Path(order.llm), ranks.device, signs="video", deepspeed=settings)
    with peak:
        fit(
            model,
            Repeated([batch]),
            config=training,
            context=run_context(Path(order.folder) / "run", "planned"),
            parameter_groups=parameter_groups(model, training, config),
            callbacks=[AfterStep(lambda step, losses: peak.mark())],
        )
    record = {"peak_bytes": peak.most, "device": str(ranks.device)}
    Path(order.folder).mkdir(exist_ok=True)
    (Path(order.folder) / f"rank-{ranks.rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main()
