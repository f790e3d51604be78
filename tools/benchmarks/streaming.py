"""Frames per second from shards to batches, compared with a bare decoder of the same files, and the memory.

Without --data, clips are drawn and sharded in a temporary folder. Each side decodes every video once per
round, in turns, in this process and with one thread: the decoders from the bytes in memory, the pipeline from
the shards to collated batches. CPU time is counted, because the load of other programs does not change
it. Memory: what this process and its --workers take along --samples samples of an endless loader.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from benchmarks import machine
from signllm.data.loading.order import OrderState
from signllm.data.loading.pipeline import BatchMaker, DataConfig, Loader, VideoSource
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, SourceSample
from signllm.data.video.decoding import encode_h264
from signllm.data.video.stored_frames import decode_stored_frames

SIDES = {
    "bare": "PyAV's frames as they are coded: not scaled, not RGB",
    "pyav": "PyAV, frame by frame to RGB of that size, none kept",
    "decoder": "ours, each video to one array",
    "pipeline": "shards to batches",
}


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", metavar="SHARDS", help="folder or address of shards")
    parser.add_argument("--split", default="train")
    parser.add_argument("--clips", type=int, default=24, help="drawn without --data")
    parser.add_argument("--frames", type=int, default=75, help="of each drawn clip")
    parser.add_argument("--side", type=int, default=256, help="of the drawn pictures, in pixels")
    parser.add_argument("--size", type=int, default=224, help="of the pictures in the batches, in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--samples", type=int, default=0, help="samples to watch memory over; 0 leaves it out"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes while memory is watched")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    args = parser.parse_args()
    if min(args.clips, args.frames, args.batch, args.rounds) < 1:
        parser.error("--clips, --frames, --batch and --rounds must be at least 1")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = args.data or drawn_shards(Path(folder), args.clips, args.frames, args.side)
        source = VideoSource(
            ShardIndex(root).split(args.split), DataConfig(size=args.size, workers=0, max_frames=20_000)
        )
        record = speed(source, args.batch, args.rounds)
        print(f"{record['videos']} videos, {record['frames']} frames, pictures of {args.size} pixels")
        print(f"frames per second of CPU time, median of {args.rounds} rounds in turns")
        for name, description in SIDES.items():
            if name in record:
                share = record["pipeline"] / record[name]
                print(f"{name:<9} {record[name]:9.1f}   pipeline / {name:<9}{share:6.3f}   {description}")
        if args.samples:
            source = VideoSource(source.split, replace(source.config, workers=args.workers))
            record["memory"] = memory_along(source, args.batch, args.samples)
            print_memory(record["memory"])
    if args.json:
        facts = machine.facts(torch.device("cpu"))
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(facts | record, indent=2) + "\n", encoding="utf-8")


def print_memory(memory: list[tuple[int, int]]) -> None:
    """Print the course of memory and, below it, how far it grew since the first tenth, which warms up."""
    for samples, size_bytes in memory:
        print(f"{samples:>8} samples  {size_bytes / 1e6:8.1f} MB")
    (first, first_bytes), (last, last_bytes) = memory[min(1, len(memory) - 1)], memory[-1]
    largest_bytes = max(size_bytes for _, size_bytes in memory)
    print(
        f"memory: {first_bytes / 1e6:.1f} MB after {first} samples, {last_bytes / 1e6:.1f} after {last}, "
        f"largest {largest_bytes / 1e6:.1f}: {last_bytes / first_bytes - 1:+.1%}"
    )


def drawn_shards(folder: Path, clips: int, frames: int, side: int) -> Path:
    """Write shards of moving noise, which costs a decoder about what a filmed person does."""
    rng, made = np.random.default_rng(0), []
    (folder / "videos").mkdir()
    for number in range(clips):
        ground = rng.integers(0, 255, (side // 8, side // 8 + frames, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        pictures = np.stack([ground[:, 2 * shown : 2 * shown + side] for shown in range(frames)])
        video = folder / "videos" / f"{number}.mp4"
        video.write_bytes(encode_h264(pictures, 25))
        made.append(SourceSample(id=str(number), video=video, text="a sentence", split="train", signer=""))
    write_shards(
        Annotations(samples=tuple(made)), folder / "shards", ShardConfig(encode="copy", show_progress=False)
    )
    return folder / "shards"


def speed(source: VideoSource, batch: int, rounds: int) -> dict[str, Any]:
    """Return frames per second of CPU time of each side, the median of rounds in turns."""
    videos = [source.split.read(index) for index in range(len(source))]
    size = source.config.size

    loader = Loader(source, batch_size=batch)
    maker, starts = BatchMaker(loader), list(loader.plan.batch_starts(OrderState(seed=0), 1))

    def pipeline() -> int:
        """Make the batches here and now: the loader's thread would go on while others are measured."""
        made = (maker[start][1] for start in starts)
        return sum(int(part.frame_counts[part.is_real].sum()) for part in made)

    sides: dict[str, Callable[[], int]] = {
        "decoder": lambda: sum(len(decode_stored_frames(members, size=size)) for members in videos),
        "pipeline": pipeline,
    }
    if all("mp4" in members for members in videos):
        files = [members["mp4"] for members in videos]
        pyav = {
            "bare": lambda: sum(map(bare, files)),
            "pyav": lambda: sum(plain(data, size) for data in files),
        }
        sides = {**pyav, **sides}
    rates = in_turns(sides, rounds)
    return {"videos": len(videos), "frames": sides["decoder"](), **rates}


def in_turns(sides: dict[str, Callable[[], int]], rounds: int) -> dict[str, Any]:
    """Return each side's median frames per second of CPU time, and ``rounds``: those of every round."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):  # the first warms up
        for name, side in sides.items():
            begin = time.process_time()
            frames = side()
            rates[name].append(frames / (time.process_time() - begin))
    medians = {name: statistics.median(of_rounds[1:]) for name, of_rounds in rates.items()}
    return {**medians, "rounds": rates}


def bare(data: bytes) -> int:
    """Decode with PyAV without converting the frames: the fastest way to read a file with it."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def plain(data: bytes, size: int) -> int:
    """Decode with PyAV, each frame to RGB with a short side of ``size`` as its manual shows; keep nothing."""
    shapes, reformatter = [], VideoReformatter()
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            sides = (size * side // min(frame.width, frame.height) for side in (frame.width, frame.height))
            scaled = reformatter.reformat(frame, *sides, format="rgb24", interpolation="BICUBIC", threads=1)
            shapes.append(scaled.to_ndarray().shape)
    return len(shapes)


def memory_along(source: VideoSource, batch: int, samples: int) -> list[tuple[int, int]]:
    """Return (samples so far, bytes of this process and its workers) at eleven places of an endless loader.

    Of memory that processes share each counts its part (Linux's PSS), so the sum is what the loader takes.
    Files mapped into memory do not count: libraries are shared with other Python processes.
    """
    course, steps = [], -(-samples // batch)
    for step, _ in enumerate(islice(Loader(source, batch_size=batch), steps + 1)):
        if step % max(1, steps // 10) == 0:
            workers = [child.pid for child in multiprocessing.active_children() if child.pid]
            course.append((step * batch, sum(map(_taken, [os.getpid(), *workers]))))
    return course


def _taken(process: int) -> int:
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return 1024 * sum(
        int(kilobytes) for kilobytes in re.findall(r"^Pss_(?:Anon|Shmem):\s*(\d+) kB", text, re.M)
    )
