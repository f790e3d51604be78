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


def _gpu(
    name: str,
    row: str,
    memory_gib: float,
    bandwidth: float,
    link: float,
    host: float,
    fp32: float,
    profile: str = "a100",
) -> Gpu:
    return Gpu(
        name=name,
        row=row,
        memory_gib=memory_gib,
        bandwidth=bandwidth,
        link=link,
        host=host,
        fp32=fp32,
        profile=profile,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-40", "A100", 39, 1555, 300, 32, 19.5),
        _gpu("a100-80", "A100", 79, 2039, 300, 32, 19.5),
        _gpu("h100", "H100", 79, 3350, 450, 64, 67, "h100"),
        _gpu("h200", "H200", 139, 4800, 450, 64, 67, "h100"),
        _gpu("b200", "B200", 178, 8000, 900, 64, 75, "h100"),
        _gpu("a40", "A40", 44, 696, 32, 32, 37.4),
        _gpu("l40s", "L40S", 44, 864, 32, 32, 91.6),
        _gpu("rtx-4090", "RTX 4090", 23, 1008, 32, 32, 82.6),
        _gpu("rtx-3090", "RTX 3090", 23, 936, 32, 32, 35.6),
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
