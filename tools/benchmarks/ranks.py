"""The data order of a thousand ranks in one process: every epoch audited, layouts changed in the middle.

Nothing is decoded. Each rank asks for its part of each batch as a loader's worker does
(`EpochPlan.rank_part`); the parts of all ranks together must be each sample of the epoch once, equally many
on each rank. Ranks change in the middle of every epoch, and the audit goes over the joint. Without a limit of
frames, batches grow to the next multiple of the ranks.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from dataclasses import dataclass

import numpy as np

from signllm.data.loading.order import OrderState, hash_integers
from signllm.data.loading.plan import EpochPlan
from signllm.data.weighted_dataset import WeightedDataset


@dataclass(frozen=True)
class Audit:
    """The result of an epoch: steps, padding, the most frames of a rank, and what was wrong."""

    layout: str
    steps: int
    padding: int
    most_frames: int
    seconds: float
    wrong: str


def main() -> None:
    """Verify and print each pair of layouts; exit with 1 if a sample was missed or repeated."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=float, default=1e5)
    parser.add_argument("--batch", type=int, default=4096, help="videos per step over all ranks")
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[1024, 768, 1000, 1], help="one after another"
    )
    parser.add_argument("--max-frames-per-batch", type=int, default=600_000)
    args = parser.parse_args()
    if min(args.samples, args.batch, *args.ranks) < 1:
        parser.error("--samples, --batch and --ranks must be at least 1")
    samples = int(args.samples)
    frames = (50 + hash_integers(0, count=samples) % np.uint64(251)).astype(np.int64)
    names = f"{'ranks':>14} {'limit':>8} {'steps':>6} {'padding':>8} {'frames of a rank':>17} {'seconds':>8}"
    print(f"{names}  audit")
    failed = False
    for limit, layout in itertools.product((None, args.max_frames_per_batch), _pairs(args.ranks)):
        audit = audited(frames, args.batch, limit, layout)
        failed |= bool(audit.wrong)
        print(
            f"{audit.layout:>14} {limit or 'none':>8} {audit.steps:>6} {audit.padding:>8} "
            f"{audit.count_most_frames:>17,} {audit.seconds:>8.2f}  {audit.wrong or 'each once'}",
            flush=True,
        )
    sys.exit(1 if failed else 0)


def _pairs(ranks: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(ranks)) or [(ranks[0], ranks[0])]


def audited(frames: np.ndarray, batch: int, limit: int | None, layout: tuple[int, int]) -> Audit:
    """Run one epoch: half of it on ``layout[0]`` ranks, the rest, from three integers, on ``layout[1]``."""
    begun = time.perf_counter()
    sizes = tuple(len(part) for part in np.array_split(frames, max(1, len(frames) // 2000)))
    steps = padding = most_frames = 0
    seen, wrong = np.zeros(len(frames), np.int64), ""
    state = {"seed": 7, "epoch": 0, "samples_consumed": 0}
    for world, stop in zip(layout, (len(frames) // 2, len(frames)), strict=True):
        plan = EpochPlan(
            datasets=(WeightedDataset(shard_sizes=sizes),),
            batch_size=batch if limit else -(-batch // world) * world,
            frame_counts=frames if limit else None,
            max_frames=limit,
        )
        for start in plan.batch_starts(OrderState(**state), 1):
            if start.samples_consumed >= stop:
                break
            parts = [plan.rank_part(start, rank=rank, world=world) for rank in range(world)]
            if len({len(part.samples) for part in parts}) > 1:
                wrong = wrong or f"step {steps}: ranks hold unequally many samples"
            for part in parts:
                np.add.at(seen, part.samples[part.is_real], 1)
                padding += int((~part.is_real).sum())
                most_frames = max(most_frames, int(frames[part.samples].sum()))
            steps += 1
            state = plan.state_after(start).as_dict()
    if (seen != 1).any():
        wrong = wrong or f"{int((seen == 0).sum())} samples missed, {int((seen > 1).sum())} twice"
    name = f"{layout[0]} -> {layout[1]}"
    return Audit(name, steps, padding, most_frames, time.perf_counter() - begun, wrong)
