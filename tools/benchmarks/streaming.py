"""Frames per second from shards to batches beside the bare decoder of the same files, and memory on the way.

Without --data, clips are drawn and sharded in a temporary folder. Both sides decode every video once per
round, in turns, in this process and with one thread: the decoder alone from the bytes in memory, the pipeline
from the shards to collated batches. Memory: the resident set of this process along --samples samples of a
loader without workers.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from signllm.data.clip import Annotations, Clip
from signllm.data.index import ShardIndex
from signllm.data.pipeline import DataConfig, Loader, VideoSource
from signllm.data.shards import ShardConfig, write_shards
from signllm.data.stored import stored_frames
from signllm.data.video import encode_h264


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    given = parser.parse_args()
    if min(given.clips, given.frames, given.batch, given.rounds) < 1:
        parser.error("--clips, --frames, --batch and --rounds must be at least 1")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = given.data or drawn_shards(Path(folder), given.clips, given.frames, given.side)
        source = VideoSource(
            ShardIndex(root).split(given.split), DataConfig(size=given.size, workers=0, max_frames=20_000)
        )
        found = speed(source, given.batch, given.rounds)
        print(f"{found['videos']} videos, {found['frames']} frames, pictures of {given.size} pixels")
        for name in ("decoder", "pipeline"):
            print(f"{name:<9} {found[name]:9.1f} frames/s, median of {given.rounds} rounds in turns")
        print(f"{'ratio':<9} {found['pipeline'] / found['decoder']:9.3f}")
        if given.samples:
            found["resident"] = resident_along(source, given.batch, given.samples)
            for samples, size_bytes in found["resident"]:
                print(f"{samples:>8} samples  {size_bytes / 1e6:8.1f} MB resident")
    if given.json:
        facts = machine.facts(torch.device("cpu"))
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(facts | found, indent=2) + "\n", encoding="utf-8")


def drawn_shards(folder: Path, clips: int, frames: int, side: int) -> Path:
    """Write shards of moving noise, which costs a decoder about what a filmed person does."""
    rng, made = np.random.default_rng(0), []
    (folder / "videos").mkdir()
    for number in range(clips):
        ground = rng.integers(0, 255, (side // 8, side // 8 + frames, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        pictures = np.stack([ground[:, 2 * shown : 2 * shown + side] for shown in range(frames)])
        video = folder / "videos" / f"{number}.mp4"
        video.write_bytes(encode_h264(pictures, 25))
        made.append(Clip(id=str(number), video=video, text="a sentence", split="train", signer=""))
    write_shards(
        Annotations(clips=tuple(made)), folder / "shards", ShardConfig(encode="copy", show_progress=False)
    )
    return folder / "shards"


def speed(source: VideoSource, batch: int, rounds: int) -> dict[str, Any]:
    """Return frames per second of the bare decoder and of the pipeline, the median of rounds in turns."""
    videos = [source.split.read(index) for index in range(len(source))]
    rates: dict[str, list[float]] = {"decoder": [], "pipeline": []}
    frames = 0
    for _ in range(rounds + 1):  # the first warms up
        begin = time.perf_counter()
        frames = sum(len(stored_frames(members, size=source.config.size)) for members in videos)
        middle = time.perf_counter()
        batched = sum(
            int(part.frame_counts[part.is_real].sum()) for part in Loader(source, batch_size=batch, epochs=1)
        )
        end = time.perf_counter()
        assert batched == frames
        rates["decoder"].append(frames / (middle - begin))
        rates["pipeline"].append(frames / (end - middle))
    medians = {name: statistics.median(of_rounds[1:]) for name, of_rounds in rates.items()}
    return {"videos": len(videos), "frames": frames, **medians, "rounds": rates}


def resident_along(source: VideoSource, batch: int, samples: int) -> list[tuple[int, int]]:
    """Return (samples so far, resident bytes) at eleven places of an endless loader."""
    found, steps = [], -(-samples // batch)
    for step, _ in enumerate(islice(Loader(source, batch_size=batch), steps + 1)):
        if step % max(1, steps // 10) == 0:
            found.append((step * batch, _resident()))
    return found


def _resident() -> int:
    told = re.search(r"^VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(told[1]) * 1024 if told else 0
