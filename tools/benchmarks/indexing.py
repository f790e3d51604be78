"""Seconds and memory to open an index of many samples and to order an epoch of them, each in a process.

The index is written as `signllm shard` writes it, with sentences of 17 drawn words; its tars are holes of the
right size, which nothing here reads. 10,000 hours are about six million sentences of six seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import re
import tempfile
import time
from pathlib import Path

from signllm.data.loading.order import OrderState
from signllm.data.loading.plan import EpochPlan
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.shard_json import SHARD_FORMAT, SHARD_VERSION
from signllm.data.shards.tar import MANIFEST

_PER_SHARD = 2000


def main() -> None:
    """Measure and print a row for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=float, nargs="+", default=[1e4, 1e5])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    args = parser.parse_args()
    if min(args.samples) < 1:
        parser.error("--samples must be at least 1")
    names = ("samples", "on disk MB", "open s", "memory MB", "order s", "by length s", "batches/s")
    print("".join(f"{name:>13}" for name in names))
    rows = []
    for samples in map(int, args.samples):
        with (
            tempfile.TemporaryDirectory() as folder,
            multiprocessing.get_context("spawn").Pool(1) as process,
        ):
            size_bytes = write_index(Path(folder), samples)
            rows.append([samples, size_bytes / 1e6, *process.apply(measured, (Path(folder),))])
        print("".join(f"{value:13,.{0 if value >= 1000 else 2}f}" for value in rows[-1]), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        records = [dict(zip(names, row, strict=True)) for row in rows]
        args.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


def measured(root: Path) -> tuple[float, ...]:
    """Return seconds to open, megabytes it takes, seconds of an epoch's order, by length too, batches/s."""
    before = _resident()
    begun = time.perf_counter()
    split = ShardIndex(root).split("train")
    opened = time.perf_counter()
    memory = (_resident() - before) / 1e6
    plans = [
        EpochPlan(datasets=split.datasets, batch_size=256, frame_counts=frames, max_frames=limit)
        for frames, limit in ((None, None), (split.samples.frames, 25_600))
    ]
    seconds = []
    for plan in plans:
        start = time.perf_counter()
        plan.order(0, 0)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    batches = sum(1 for _ in plans[1].batch_starts(OrderState(seed=0), 1))
    return opened - begun, memory, *seconds, batches / (time.perf_counter() - start)


def write_index(root: Path, samples: int) -> int:
    """Write manifest, indexes and hollow tars of a split ``train``; return the bytes of the JSON."""
    rng = random.Random(0)
    words = [hashlib.md5(str(number).encode()).hexdigest()[: rng.randint(2, 9)] for number in range(20_000)]
    entries, size_bytes = [], 0
    for shard, first in enumerate(range(0, samples, _PER_SHARD)):
        described, end = [], 0
        for number in range(first, min(samples, first + _PER_SHARD)):
            key, video = f"recording{shard:05d}-{number:08d}", rng.randint(60_000, 200_000)
            members = {"json": [end + 512, 420], "mp4": [end + 1536, video], "txt": [end + video + 2560, 100]}
            described.append(
                {
                    "key": key,
                    "id": f"{key}.mp4",
                    "split": "train",
                    "language": "English",
                    "signer": f"signer {rng.randint(0, 300)}",
                    "frames": rng.randint(50, 300),
                    "fps": 25.0,
                    "width": 256,
                    "height": 256,
                    "encode": "h264",
                    "source": f"recording{shard:05d}.mp4",
                    "source_sha256": hashlib.sha256(key.encode()).hexdigest(),
                    "text": " ".join(rng.choices(words, k=17)),
                    "members": members,
                }
            )
            end += video + 4096
        name = f"train-{shard:06d}"
        head = {"format": SHARD_FORMAT, "version": SHARD_VERSION, "tar": f"{name}.tar", "size_bytes": end}
        sidecar = json.dumps(
            head | {"sha256": name, "inputs": "", "clips": len(described), "left_out": []}
            | {"samples": described}
        )  # fmt: skip
        (root / f"{name}.json").write_text(sidecar)
        with (root / f"{name}.tar").open("wb") as hollow:
            hollow.truncate(end)
        counts = {"samples": len(described), "frames": 0, "seconds": 0, "size_bytes": end}
        entries.append({"tar": f"{name}.tar", "index": f"{name}.json", "sha256": name, **counts})
        size_bytes += len(sidecar)
    manifest = {"format": SHARD_FORMAT, "version": SHARD_VERSION, "splits": {"train": {"shards": entries}}}
    manifest |= {"made": {}, "clips_in_source": samples, "left_out": []}
    (root / MANIFEST).write_text(json.dumps(manifest))
    return size_bytes


def _resident() -> int:
    match = re.search(r"^VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
