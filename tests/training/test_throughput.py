"""Rates are sums over ranks divided by one clock; MFU by the peak of a GPU found by its name."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from signllm.training import throughput
from signllm.training.throughput import Throughput, format_rates, memory_bytes, peak_by_name

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def shares(**counts: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(1.0)} | {f"count/{name}": torch.tensor(v) for name, v in counts.items()}


def take_step(ranks: list[Throughput]) -> None:
    """Sum what the ranks say, as the loop's reduction does, and give all of them the sums."""
    own = [rank.local_numbers() for rank in ranks]
    for rank in ranks:
        rank.add_step([sum(values) for values in zip(*own, strict=True)])


def test_rates_are_over_all_ranks_and_waiting_is_their_mean(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter([3 * 2**30, 2**30] * 2)
    monkeypatch.setattr(throughput, "memory_bytes", lambda device: next(taken))
    ranks = [Throughput(rank=rank, world=2, device=CPU) for rank in (0, 1)]
    for rank in ranks:
        rank.peak = 1e12

    def slow() -> Iterator[SimpleNamespace]:
        while True:
            clock.now += 0.5
            yield SimpleNamespace(is_real=torch.tensor([True] * 8 + [False]))

    for _ in range(2):
        ranks[1].next_batch(slow())
        for rank in ranks:
            left = rank.take_counts(shares(frames=100.0, clips=20.0, operations=5e11))
            assert list(left) == ["loss"]
        take_step(ranks)
        clock.now += 1.5
    first, second = (rank.rates() for rank in ranks)
    assert first == second
    assert first == pytest.approx(
        {
            "seconds": 2.0,
            "videos_per_s": 4.0,
            "frames_per_s": 100.0,
            "clips_per_s": 20.0,
            "data_wait": 0.125,
            "teraflop_per_s": 0.25,
            "mfu": 0.25,
            "memory_gib": 3.0,
            "memory_mean_gib": 2.0,
        }
    )
    clock.now += 1.0
    assert ranks[0].rates()["videos_per_s"] == 0.0, "a reading starts anew"


def test_counts_of_accumulated_forward_passes_add_up(clock: Clock) -> None:
    alone = Throughput(rank=0, world=1, device=CPU)
    for _ in range(3):
        alone.take_counts(shares(tokens=7.0))
    take_step([alone])
    clock.now += 1.0
    values = alone.rates()
    assert values["tokens_per_s"] == 21.0
    assert "mfu" not in values, "a CPU has no peak in the table"
    assert "teraflop_per_s" not in values, "a model that counts no operations shows none"


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla V100-SXM2-16GB", 125),
    ],
)
def test_the_peak_goes_by_whole_words_of_the_name(name: str, tera: float) -> None:
    assert peak_by_name(name) == tera * 1e12


def test_an_unknown_gpu_has_no_peak() -> None:
    assert peak_by_name("NVIDIA GeForce GT 1030") is None


def test_resident_memory_grows_with_what_is_touched() -> None:
    size = 64 * 2**20
    before = memory_bytes(CPU)
    with mmap.mmap(
        -1, size
    ) as block:  # of the system itself: an allocator may use memory again that it holds
        block.write(b"\1" * size)
        assert memory_bytes(CPU) - before > 0.9 * size


def test_the_note_names_terms_rates_and_memory() -> None:
    losses = {"loss": 3.25, "l_sim": 2.0, "l_mmd": 0.5, "perplexity": 130.4, "covered": 0.5}
    assert format_rates(losses, {}) == "loss 3.2500 (sim 2, mmd 0.5), perplexity 130"
    reading = {"videos_per_s": 12.0, "tokens_per_s": 900.0, "data_wait": 0.03, "mfu": 0.41, "memory_gib": 9.5}
    assert format_rates({"loss": 1.0}, reading) == (
        "loss 1.0000, 12 videos/s, 900 tokens/s, waiting 3%, MFU 41%, 9.50 GiB"
    )
