"""Frames per second of encoding h264 for shards, compared with the ffmpeg command line at equal settings.

Both shrink to a short side of 256 by bicubic scaling and encode by x264 (preset veryfast, crf 21, a key frame
every 12, no mbtree) with one thread. What is counted is CPU time, user and system, of this process for ours
and of the child for ffmpeg, its start included: other people's load does not lengthen it. The two bring their
own FFmpeg and x264, so a part of the difference is theirs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from signllm.data.shards.sample_encoding import EncodeConfig, EncodedSample, encode_sample
from signllm.data.source_samples import SourceSample
from signllm.data.video.decoding import encode_h264

DRAWN = {"1280x720": (720, 1280), "600x338": (338, 600)}


def main() -> None:
    """Measure and print a line for every video."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "videos", nargs="*", type=Path, help="in addition to generated ones of 720p and 600 x 338"
    )
    parser.add_argument("--frames", type=int, default=150, help="of each drawn clip")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if min(args.frames, args.rounds) < 1:
        parser.error("--frames and --rounds must be at least 1")
    program = shutil.which("ffmpeg")
    if program is None:
        parser.error("there is no ffmpeg on the path to compare with")
    with tempfile.TemporaryDirectory() as folder:
        drawn = [draw(Path(folder), name, args.frames, *shape) for name, shape in DRAWN.items()]
        print(f"frames per second of CPU time, median of {args.rounds} rounds in turns")
        print(
            f"{'video':<28} {'frames':>6} {'size':>9} {'ffmpeg':>8} {'ours':>8} {'ratio':>6}  ratio of bytes"
        )
        for video in [*drawn, *args.videos]:
            print(compared(program, video, Path(folder) / "made.mp4", args.rounds), flush=True)


def draw(folder: Path, name: str, frames: int, height: int, width: int) -> Path:
    """Write a clip of moving noise with soft edges, which costs a codec about what a filmed person does."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 255, (height // 8 + 1, (width + 2 * frames) // 8 + 1, 3), np.uint8)
    ground = ground.repeat(8, 0).repeat(8, 1)
    path = folder / f"drawn-{name}.mp4"
    path.write_bytes(
        encode_h264((ground[:height, 2 * shown : 2 * shown + width] for shown in range(frames)), 25)
    )
    return path


def compared(program: str, video: Path, target: Path, rounds: int) -> str:
    """Return the line of one video."""
    clip = SourceSample(id="a", video=video, text="a sentence", split="train")
    rates: dict[str, list[float]] = {"ffmpeg": [], "ours": []}
    for _ in range(rounds + 1):  # the first warms up
        begin = _children_s()
        subprocess.run(command(program, video, target), check=True, stdin=subprocess.DEVNULL)
        middle, own = _children_s(), time.process_time()
        sample = encode_sample(clip, EncodeConfig())
        end = time.process_time()
        if not isinstance(sample, EncodedSample):
            raise SystemExit(f"{video}: {sample.reason}")
        frames = sample.meta["frames"]
        rates["ffmpeg"].append(frames / (middle - begin))
        rates["ours"].append(frames / (end - own))
    with av.open(str(target)) as container:
        of_ffmpeg = sum(1 for _ in container.decode(video=0))
    if of_ffmpeg != frames:
        raise SystemExit(f"{video}: ffmpeg made {of_ffmpeg} frames, ours are {frames}")
    theirs, ours = (statistics.median(of_rounds[1:]) for of_rounds in rates.values())
    size = f"{sample.meta['width']}x{sample.meta['height']}"
    bytes_ratio = len(sample.members["mp4"]) / target.stat().st_size
    return (
        f"{video.name:<28} {frames:>6} {size:>9} {theirs:>8.1f} {ours:>8.1f} {ours / theirs:>6.3f}"
        f"  {bytes_ratio:.3f}"
    )


def command(program: str, video: Path, target: Path) -> list[str]:
    """Return the ffmpeg command with the settings of ``EncodeConfig()``."""
    scale = "scale='if(gt(min(iw,ih),256),if(gt(iw,ih),-2,256),iw)'"
    scale += ":'if(gt(min(iw,ih),256),if(gt(iw,ih),256,-2),ih)':flags=bicubic"
    reading = [program, "-v", "error", "-y", "-threads", "1", "-filter_threads", "1", "-i", str(video)]
    coding = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "21", "-g", "12"]
    coding += ["-x264-params", "mbtree=0", "-pix_fmt", "yuv420p", "-threads", "1"]
    return [*reading, "-an", "-vf", scale, "-fps_mode", "passthrough", *coding, str(target)]


def _children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system
