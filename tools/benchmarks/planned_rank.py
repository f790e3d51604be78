"""One rank of a training run whose memory is measured; :mod:`benchmarks.planned` starts them.

``python -m benchmarks.planned_rank ORDER`` (JSON) with ``RANK``, ``WORLD_SIZE`` and the rendezvous set trains
SignLLM with the project's own loop. On a GPU torch's allocator tells the peak of a step. On a CPU torch's
profiler tells of every allocation from before the model is built on: their running sum is the same figure.
Neither counts what is allocated outside of torch: libraries, gloo's and NCCL's own buffers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_model import Size, Work, build, draw_batch
from benchmarks.training_sides import Repeated
from signllm.config import FinetuneConfig
from signllm.plain import from_plain
from signllm.stages.parameter_groups import parameter_groups
from signllm.training.engine import deepspeed_settings, import_deepspeed, start_distributed
from signllm.training.local_ranks import leave_ranks
from signllm.training.loop import fit

STEPS = 3
"""The last is measured: by then Adam has its moments and DeepSpeed knows the order of the weights."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a rank is to do.

    Attributes:
        folder: for its files.
        llm: folder of the language model, without weights.
        config: of stage 3, as ``config.json`` holds it.
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


class CpuPeak:
    """The most that torch had allocated on this CPU in the last step, counted from here on."""

    def __init__(self) -> None:
        self.profiler = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        )
        self.profiler.start()
        self.marks: list[int] = []

    def mark(self) -> None:
        """Note the end of a step."""
        self.marks.append(time.time_ns())

    def bytes(self) -> int:
        """Return the most between the last two marks."""
        self.profiler.stop()
        results: Any = self.profiler.profiler
        events = results.kineto_results.events()
        changes = sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]")
        allocated, most = 0, 0
        for when, change in changes:
            allocated += change
            if self.marks[-2] <= when <= self.marks[-1]:
                most = max(most, allocated)
        return most


class GpuPeak:
    """The same of a GPU, by its allocator."""

    def __init__(self) -> None:
        self.most = 0

    def mark(self) -> None:
        """End a step; the next is counted anew."""
        torch.cuda.synchronize()
        self.most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def bytes(self) -> int:
        """Return the most between the last two marks."""
        return self.most


def main() -> None:
    """Carry out the order of the command line."""
    carry_out(Order(**json.loads(sys.argv[1])))
    leave_ranks()


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
    fit(
        model,
        Repeated([batch]),
        config=training,
        run=Path(order.folder) / "run",
        stage="planned",
        parameter_groups=parameter_groups(model, training, config),
        on_step=lambda step, metrics: peak.mark(),
    )
    record = {"peak_bytes": peak.bytes(), "device": str(ranks.device)}
    (Path(order.folder) / f"rank-{ranks.rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main()
