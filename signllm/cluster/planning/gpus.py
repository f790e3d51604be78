"""GPUs as their data sheets describe them, for plans on machines without such a GPU.

Sources: NVIDIA's data sheets of A100, A40, H100, H200, L40S, B200 and the GeForce 30 and 40 series. Memory is
what torch reports as a device's total capacity, a little less than advertised, in whole GiB. ``link`` is the
rate of NVLink or, without it, of PCIe in one direction: half of what data sheets print. Operations in 16 bits
are those of :data:`signllm.training.throughput.PEAK_TERA`: dense, with sums in 32 bits.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

from signllm.errors import UsageError
from signllm.training.throughput import TERA, peak_by_name


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, described by its data sheet.

    Attributes:
        name: short name, as given on the command line.
        row: its row in the table of peaks.
        memory_gib: memory that torch can allocate, in GiB.
        bandwidth: bandwidth of its memory in GB/s.
        link: bandwidth to the other GPUs of its node in one direction, in GB/s.
        host: bandwidth to the CPU's memory in one direction, in GB/s.
        fp32: peak in 32 bits without TF32, in 10^12 operations per second.
        profile: the most similar profile of ``launch``.
    """

    name: str
    row: str
    memory_gib: float
    bandwidth: float
    link: float
    host: float
    fp32: float
    profile: str = "a100"

    @property
    def peak(self) -> float:
        """Operations per second in 16 bits."""
        peak = peak_by_name(self.row)
        assert peak is not None
        return peak

    @property
    def peak_wide(self) -> float:
        """Operations per second in 32 bits."""
        return self.fp32 * TERA


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="a100-40", row="A100", memory_gib=39, bandwidth=1555, link=300, host=32, fp32=19.5),
        Gpu(name="a100-80", row="A100", memory_gib=79, bandwidth=2039, link=300, host=32, fp32=19.5),
        Gpu(
            name="h100", row="H100", memory_gib=79, bandwidth=3350, link=450, host=64, fp32=67, profile="h100"
        ),
        Gpu(
            name="h200",
            row="H200",
            memory_gib=139,
            bandwidth=4800,
            link=450,
            host=64,
            fp32=67,
            profile="h100",
        ),
        Gpu(
            name="b200",
            row="B200",
            memory_gib=178,
            bandwidth=8000,
            link=900,
            host=64,
            fp32=75,
            profile="h100",
        ),
        Gpu(name="a40", row="A40", memory_gib=44, bandwidth=696, link=32, host=32, fp32=37.4),
        Gpu(name="l40s", row="L40S", memory_gib=44, bandwidth=864, link=32, host=32, fp32=91.6),
        Gpu(name="rtx-4090", row="RTX 4090", memory_gib=23, bandwidth=1008, link=32, host=32, fp32=82.6),
        Gpu(name="rtx-3090", row="RTX 3090", memory_gib=23, bandwidth=936, link=32, host=32, fp32=35.6),
    )
}
"""The GPUs by name; the SXM form if there are several."""


def find_gpu(
    name: str, *, memory_gib: float | None = None, bandwidth: float | None = None, link: float | None = None
) -> Gpu:
    """Return a GPU of the table, with some of its numbers replaced to describe a GPU that is not in it.

    Raises:
        UsageError: there is no such GPU, or a number is not above 0.
    """
    if name not in GPUS:
        near = difflib.get_close_matches(name.lower(), GPUS, n=1)
        raise UsageError(
            f"the table has no GPU {name!r}",
            where="--gpu",
            remedy=(f"did you mean {near[0]!r}? " if near else "")
            + f"GPUs: {', '.join(GPUS)}; for another, use --memory-gib, --bandwidth, --link",
        )
    numbers = {"memory_gib": memory_gib, "bandwidth": bandwidth, "link": link}
    changes: dict[str, Any] = {key: value for key, value in numbers.items() if value is not None}
    for key, value in changes.items():
        if value <= 0:
            raise UsageError(
                f"{key} is {value:g}", where=f"--{key.replace('_', '-')}", remedy="give more than 0"
            )
    return replace(GPUS[name], **changes)
