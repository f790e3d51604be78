"""Training speed and resource use over all ranks: rates, waiting for data, MFU and memory.

A model reports what a forward pass processed as shares named ``count/frames``, ``count/clips``,
``count/tokens`` and ``count/operations`` (scalars on the CPU, for this rank). They travel in the all-reduce
that carries the losses, together with this rank's waiting time and, in one slot per rank, its memory. This
needs no further collective and costs 8 bytes per rank and step.

MFU (PaLM, arXiv 2204.02311, appendix B) = operations / (seconds x ranks x peak operations per second).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COUNTS = ("frames", "clips", "tokens", "operations")
PREFIX = "count/"
GIB, TERA = 2**30, 1e12

PEAK_TERA = {
    "GB200": 2500,
    "B200": 2250,
    "GH200": 989,
    "H200 NVL": 835,
    "H200": 989,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H100": 989,
    "H800": 989,
    "H20": 148,
    "A100": 312,
    "A800": 312,
    "A40": 150,
    "A30": 165,
    "A10": 125,
    "A10G": 70,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "RTX A6000": 155,
    "RTX 6000 Ada": 364,
    "V100": 125,
    "MI300X": 1307,
}
"""10^12 operations per second in 16 bits with sums in 32, dense, from the makers' data sheets."""


def peak_operations(device: torch.device) -> float | None:
    """Return the device's peak operations per second in 16 bits; None for a CPU or an unknown GPU."""
    return peak_by_name(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_by_name(name: str) -> float | None:
    """Return the peak by a GPU's name, which must contain all words of a row; the longest such row counts."""
    words = set(name.replace("-", " ").split())
    rows = [row for row in PEAK_TERA if set(row.split()) <= words]
    return PEAK_TERA[max(rows, key=len)] * TERA if rows else None


def memory_bytes(device: torch.device) -> int:
    """Return the peak of allocated GPU memory of this process; on a CPU its present resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


class Throughput:
    """Sums since the last log line. They come out of an all-reduce, so all ranks have the same values.

    Args:
        rank: this rank.
        world: number of ranks.
        device: device of this rank; all ranks are assumed to have the same kind.
    """

    def __init__(self, *, rank: int, world: int, device: torch.device) -> None:
        self.rank, self.world, self.device = rank, world, device
        self.peak = peak_operations(device)
        self._waited_s, self._videos, self._counted = 0.0, 0.0, dict.fromkeys(COUNTS, 0.0)
        self.restart()

    def restart(self) -> None:
        """Set all sums to zero and start the clock."""
        self._steps, self._save_s, self._started = 0, 0.0, time.perf_counter()
        self._sums = [0.0] * (2 + len(COUNTS))
        self._memory = [0.0] * self.world

    def next_batch(self, stream: Iterator[Any]) -> Any:
        """Return the next batch; add the time that it took to arrive and the number of its real videos."""
        begun = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            raise RuntimeError("the loader ended before the last training step; build it with epochs=None")
        self._waited_s += time.perf_counter() - begun
        self._videos += float(batch.is_real.sum())
        return batch

    def add_save_time(self, seconds: float) -> None:
        """Add seconds during which a save kept the training waiting."""
        self._save_s += seconds

    def take_counts(self, shares: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add the counts of a forward pass and return its other shares, the losses."""
        for name in COUNTS:
            if PREFIX + name in shares:
                self._counted[name] += float(shares[PREFIX + name])
        return {name: share for name, share in shares.items() if not name.startswith(PREFIX)}

    def local_numbers(self) -> list[float]:
        """Return this rank's numbers of a step, to be summed over the ranks, and reset them."""
        memory = [0.0] * self.world
        memory[self.rank] = float(memory_bytes(self.device))
        numbers = [self._waited_s, self._videos, *self._counted.values(), *memory]
        self._waited_s, self._videos, self._counted = 0.0, 0.0, dict.fromkeys(COUNTS, 0.0)
        return numbers

    def add_step(self, summed: Sequence[float]) -> None:
        """Add a finished step, given the sum over all ranks of :meth:`local_numbers`."""
        self._steps += 1
        places = len(self._sums)
        self._sums = [total + value for total, value in zip(self._sums, summed[:places], strict=True)]
        self._memory = [max(pair) for pair in zip(self._memory, summed[places:], strict=True)]

    def rates(self) -> dict[str, float]:
        """Return the rates since the last call and restart; rates that are zero are left out.

        The keys are ``seconds`` per step; ``videos_per_s``, ``frames_per_s``, ``clips_per_s`` and
        ``tokens_per_s`` (read by the language model), over all ranks; ``data_wait``, the share of the time
        spent waiting for data, averaged over ranks; ``save_s``, seconds that saves kept the training waiting;
        ``teraflop_per_s`` per rank; ``mfu``; ``memory_gib`` of the rank that uses most, and
        ``memory_mean_gib``.
        """
        elapsed_s = max(1e-9, time.perf_counter() - self._started)
        waited_s, videos, *counted = self._sums
        *processed, operations = counted
        rates = {f"{name}_per_s": value / elapsed_s for name, value in zip(COUNTS, processed, strict=False)}
        per_rank = operations / elapsed_s / self.world
        values = {
            "seconds": elapsed_s / max(1, self._steps),
            "videos_per_s": videos / elapsed_s,
            **{name: rate for name, rate in rates.items() if rate},
            "data_wait": waited_s / self.world / elapsed_s,
            **({"teraflop_per_s": per_rank / TERA} if operations else {}),
            **({"mfu": per_rank / self.peak} if operations and self.peak else {}),
            **({"save_s": self._save_s} if self._save_s else {}),
            "memory_gib": max(self._memory) / GIB,
            "memory_mean_gib": sum(self._memory) / self.world / GIB,
        }
        self.restart()
        return values


def format_rates(losses: Mapping[str, float], rates: Mapping[str, float]) -> str:
    """Return the text next to the progress bar: loss and its terms, rates, waiting, MFU and memory."""
    terms = [f"{name[2:]} {value:.3g}" for name, value in losses.items() if name.startswith("l_")]
    parts = [f"loss {losses['loss']:.4f}" + (f" ({', '.join(terms)})" if terms else "")]
    if "perplexity" in losses:
        parts.append(f"perplexity {losses['perplexity']:.0f}")
    parts += [
        f"{rates[f'{name}_per_s']:.4g} {name}/s" for name in ("videos", *COUNTS) if f"{name}_per_s" in rates
    ]
    if rates:
        parts.append(f"waiting {rates['data_wait']:.0%}")
        parts += [f"MFU {rates['mfu']:.0%}"] if "mfu" in rates else []
        parts.append(f"{rates['memory_gib']:.2f} GiB")
    return ", ".join(parts)
