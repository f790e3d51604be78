"""A checkpoint of a thousand ranks in one process: cut, gathered, written, read, and cut for other ranks.

Weights and both moments are cut for each number of ranks as ZeRO-3 does (`engine_state.partition_of`, which a
resume cuts with), gathered again and compared to the last bit. What the first layout gathered is written by
`checkpoint.save`; all later ones start from what is read back. It also checks the batch arithmetic of each
layout. DeepSpeed itself does not run here: that its pieces are these is asserted at every resume.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from signllm.training.checkpoint import (
    TrainingState,
    last_checkpoint,
    load_moments,
    load_weights,
    read_state,
    save_checkpoint,
)
from signllm.training.engine import TrainingConfig, deepspeed_settings
from signllm.training.engine_state import MOMENTS, partition_of

AWKWARD = ((1,), (7,), (1009,), (1023,), (1025, 3), (64, 3, 7, 7))
LARGE = ((1024, 1024, 5), (1024,), (4096, 1024), (4096,), (1031, 1009))


@dataclass(frozen=True)
class Layout:
    """The result of partitioning for some number of ranks."""

    ranks: int
    share_bytes: int
    padding: int
    per_rank: int
    cut_s: float
    gather_s: float
    wrong: str


def shapes(parameters: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of about so many parameters, by name: awkward small ones, then large ones in turn."""
    shapes = {f"small.{number}": shape for number, shape in enumerate(AWKWARD)}
    left = parameters - sum(torch.Size(shape).numel() for shape in AWKWARD)
    while left > 0:
        shape = LARGE[len(shapes) % len(LARGE)]
        size = min(left, torch.Size(shape).numel())
        shapes[f"large.{len(shapes)}"] = shape if size == torch.Size(shape).numel() else (size,)
        left -= size
    return shapes


def drawn(parameters: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights and moments of random numbers."""
    generator = torch.Generator().manual_seed(7)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes(parameters).items()}
    moments = {
        f"{key}/{name}": torch.randn(weight.shape, generator=generator)
        for key in MOMENTS
        for name, weight in weights.items()
    }
    return weights, moments


def through(tensors: Mapping[str, Tensor], ranks: int, batch: int) -> tuple[dict[str, Tensor], Layout]:
    """Cut tensors for ``ranks``, gather them again; return what was gathered and how it went."""
    begun = time.perf_counter()
    shares = {
        name: [partition_of(value, r, ranks).clone() for r in range(ranks)] for name, value in tensors.items()
    }
    cut = time.perf_counter()
    gathered_tensors = {
        name: torch.cat(shares[name])[: value.numel()].view(value.shape) for name, value in tensors.items()
    }
    gathered = time.perf_counter()
    share_sizes = {sum(of[rank].numel() for of in shares.values()) for rank in range(ranks)}
    wrong = "" if len(share_sizes) == 1 else "the ranks' shares differ in size"
    differing = [name for name, value in tensors.items() if not torch.equal(gathered_tensors[name], value)]
    if differing:
        wrong = f"{len(differing)} tensors differ, first {differing[0]}"
    each = max(share_sizes)
    padding = each * ranks - sum(value.numel() for value in tensors.values())
    per_rank = videos_of_a_rank(batch, ranks)
    return gathered_tensors, Layout(ranks, 4 * each, padding, per_rank, cut - begun, gathered - cut, wrong)


def videos_of_a_rank(batch: int, ranks: int) -> int:
    """Return the videos of a rank's forward pass, as passed to DeepSpeed; their sum must be the batch."""
    config = TrainingConfig(deepspeed="zero3", steps=1, batch_size=batch)
    settings = deepspeed_settings(config, world=ranks)
    micro = int(settings["train_micro_batch_size_per_gpu"])
    assert micro * ranks * settings["gradient_accumulation_steps"] == settings["train_batch_size"] == batch
    return micro


def main() -> None:
    """Verify each layout, print a row for each and the size on the disk; exit with 1 if a tensor differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=1e8, help="trained parameters")
    parser.add_argument("--batch", type=int, default=3072, help="videos per step, a multiple of all ranks")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1024, 768, 1], help="one after another")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; by default a temporary one")
    args = parser.parse_args()
    if min(args.parameters, args.batch, *args.ranks) < 1:
        parser.error("--parameters, --batch and --ranks must be at least 1")
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        sys.exit(1 if audit(folder, int(args.parameters), args.batch, args.ranks) else 0)
    finally:
        shutil.rmtree(folder)


def audit(run: Path, parameters: int, batch: int, layouts: list[int]) -> bool:
    """Convert a checkpoint through all layouts and print each; return whether anything was wrong."""
    weights, moments = drawn(parameters)
    tensors = {**weights, **moments}
    place = {"seed": 7, "epoch": 3, "samples_consumed": 5 * batch}
    print(
        f"{'ranks':>6} {'MB of a rank':>13} {'padding':>9} {'videos':>7} {'cut s':>7} {'gather s':>9}  audit"
    )
    failed, outcome = False, ""
    for number, ranks in enumerate(layouts):
        gathered_tensors, layout = through(tensors, ranks, batch)
        failed |= bool(layout.wrong)
        print(
            f"{ranks:>6} {layout.share_bytes / 1e6:>13,.3f} {layout.padding:>9,} {layout.per_rank:>7} "
            f"{layout.cut_s:>7.2f} {layout.gather_s:>9.2f}  {layout.wrong or 'equal to the last bit'}",
            flush=True,
        )
        if number == 0:
            state = TrainingState(stage="toy", step=9, order=place)
            begun = time.perf_counter()
            save_checkpoint(
                run, state, *({n: gathered_tensors[n] for n in part} for part in (weights, moments)), keep=1
            )
            save_s = time.perf_counter() - begun
            tensors, outcome = read_back(run, tensors, place)
            failed |= "WRONG" in outcome
            outcome = (
                f"{parameters:,} parameters: written in {save_s:.1f} s (with CRC-32 and fsync), {outcome}"
            )
    print(outcome)
    return failed


def read_back(
    run: Path, args: Mapping[str, Tensor], place: Mapping[str, int]
) -> tuple[dict[str, Tensor], str]:
    """Return a checkpoint's tensors, and its bytes, its seconds and whether it gives back what was saved."""
    begun = time.perf_counter()
    folder = last_checkpoint(run)
    assert folder is not None, "the checkpoint just written is incomplete"
    checked = time.perf_counter()
    weights = load_weights(folder)
    read = weights | load_moments(folder)
    same = read.keys() == args.keys() and all(torch.equal(read[n], tensor) for n, tensor in args.items())
    loaded = time.perf_counter()  # the files are mapped: comparing is what reads them
    same = same and read_state(folder).order == place
    size = sum(path.stat().st_size for path in folder.iterdir())
    per_parameter = size / sum(weight.numel() for weight in weights.values())
    outcome = (
        f"checked in {checked - begun:.1f} s, read and compared in {loaded - checked:.1f} s; {size:,} bytes,"
    )
    came_back = "all came back" if same else "WRONG: not all came back"
    return read, f"{outcome} {per_parameter:.3f} per parameter; {came_back}"
