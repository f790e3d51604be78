"""Videos translated per second, and what takes the time: decoding, encoder, words, projector, language model.

It runs what `signllm translate` runs, in this process; reading the model is timed apart. A round with the
stopwatch follows the rounds that count: on a GPU it waits for the device at every part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks import machine
from benchmarks.training_model import SIZES, build, configured, write_folder
from signllm.cra.word_codebook import WordCodebook
from signllm.data.video.recording_pieces import motion_energies
from signllm.errors import UsageError
from signllm.inference import piece_encoding
from signllm.inference.translate import Translator, load
from signllm.inference.video_input import VideoInput, collect_video_inputs

NOTES = """\
examples:
  tools/bench_translate my-model videos                  an export or a run, and a folder of videos
  tools/bench_translate my-model videos --batch 1
  tools/bench_translate --size 7b --device cuda          LLaMA-7B of random weights, ResNet-18, drawn frames
  tools/bench_translate --size tiny --videos 6           seconds: does it run?
  tools/bench_translate --energy videos                  how much moves in videos: what --pauses looks at

output:
  videos/s     of the best round and the median; CPU: videos per second of CPU time, times the threads, which
               other people's load does not lengthen. Wanted of the demo's test split on two cores: 5
  parts        of the stopwatch's round, as shares of its time: waiting (for decoding, which runs ahead in
               threads; decoding itself is reported separately), encoder (with the nearest code), words
               (segmentation), projector, prompt (the language model until its first token), tokens (the rest
               of it), other.
               Encoder and words together, target with a real-sized language model: at most 20 %"""
TARGET_PER_S, TARGET_SHARE = 5.0, 0.2
PARTS = ("waiting", "encoder", "words", "projector", "prompt", "tokens")


def arguments() -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=NOTES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    parser.add_argument("paths", nargs="*", help="an export or a run, then videos and folders of them")
    parser.add_argument("--size", choices=tuple(SIZES), help="instead: a model of random weights")
    parser.add_argument("--energy", action="store_true", help="instead: how much moves in videos")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if on_gpu else "cpu")
    parser.add_argument("--videos", type=int, default=32, help="of --size")
    parser.add_argument("--frames", type=int, default=116, help="of a video of --size; PHOENIX-2014T's mean")
    parser.add_argument("--tokens", type=int, default=30, help="that are written for a video of --size")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--beams", type=int, help="default: as the run says; of --size 1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch's threads; torch's default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    args = parser.parse_args()
    if (args.size is None) == (len(args.paths) < (1 if args.energy else 2)):
        parser.error("give an export and videos, or --size")
    if args.device == "cuda" and not on_gpu:
        parser.error("torch sees no CUDA device here; remedy: --device cpu")
    return args


class Stopwatch:
    """Seconds by part, of the thread that translates, and of decoding, in all threads."""

    def __init__(self, translator: Translator, device: torch.device) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.decoding_s, self._lock, self._device = 0.0, threading.Lock(), device
        self._model = translator.model
        self._first_token_s: float | None = None

    def now(self) -> float:
        """Return the time at which everything so far is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure the translations inside the block."""
        model, language_model = self._model, self._model.language_model
        with ExitStack() as patches:
            for owner, name, part in (
                (piece_encoding, "encode", "encoder"),
                (WordCodebook, "segment", "words"),
                (model, "_project", "projector"),
            ):
                patches.enter_context(patch.object(owner, name, self._timed(getattr(owner, name), part)))
            patches.enter_context(
                patch.object(piece_encoding, "prefetch", self._waited(piece_encoding.prefetch))
            )
            patches.enter_context(
                patch.object(VideoInput, "decode_all", self._decoded(VideoInput.decode_all))
            )
            patches.enter_context(
                patch.object(
                    language_model, "generate_candidates", self._written(language_model.generate_candidates)
                )
            )
            hook = language_model.model.register_forward_hook(self._first)
            patches.callback(hook.remove)
            yield

    def _timed(self, work: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **named: Any) -> Any:
            begun = self.now()
            result = work(*args, **named)
            self.seconds[part] += self.now() - begun
            return result

        return timed

    def _waited(self, ahead: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def waited(*args: Any, **named: Any) -> Iterator[Any]:
            results = ahead(*args, **named)
            while True:
                begun = time.perf_counter()
                try:
                    one = next(results)
                except StopIteration:
                    return
                finally:
                    self.seconds["waiting"] += time.perf_counter() - begun
                yield one

        return waited

    def _decoded(self, decode: Callable[..., Any]) -> Callable[..., Any]:
        def decoded(*arguments: Any, **named: Any) -> Any:
            begun = time.thread_time()
            result = decode(*arguments, **named)
            with self._lock:
                self.decoding_s += time.thread_time() - begun
            return result

        return decoded

    def _written(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def written(*args: Any, **named: Any) -> Any:
            begun, self._first_token_s = self.now(), None
            result = write(*args, **named)
            ended = self.now()
            assert self._first_token_s is not None
            self.seconds["prompt"] += self._first_token_s - begun
            self.seconds["tokens"] += ended - self._first_token_s
            return result

        return written

    def _first(self, *_: Any) -> None:
        if self._first_token_s is None:
            self._first_token_s = self.now()


def drawn(
    args: argparse.Namespace, device: torch.device, folder: Path
) -> tuple[Translator, list[VideoInput]]:
    """Return a model of random weights that writes as many tokens as are asked for, and drawn frames."""
    size = SIZES[args.size]
    config = configured(size, precision=None, checkpointing=False)
    model = build(config, write_folder(folder, size), device, signs="characters", deepspeed=None)
    # a model of random weights seldom ends: it never may, so that every video gets all its tokens
    model.language_model.model.generation_config.suppress_tokens = [1]
    generation = replace(config.generation, beams=args.beams or 1, max_new_tokens=args.tokens)
    side, rng = config.data.size, np.random.default_rng(0)
    frames = rng.integers(0, 256, (args.frames, side, side, 3), np.uint8)
    videos = [VideoInput(f"drawn-{n}", np.roll(frames, n, axis=0)) for n in range(args.videos)]
    return Translator(model.to(device).eval(), replace(config, generation=generation)), videos


def read(args: argparse.Namespace) -> tuple[Translator, list[VideoInput]]:
    """Return the model and the videos that the command line names."""
    translator = load(args.paths[0], device=args.device)
    if args.beams is not None:
        generation = replace(translator.config.generation, beams=args.beams)
        translator.config = replace(translator.config, generation=generation)
    return translator, collect_video_inputs(args.paths[1:], lambda: b"")


def measure(args: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, Any]:
    """Translate the videos in rounds; return the measurements."""
    begun = time.perf_counter()
    translator, videos = drawn(args, device, folder) if args.size else read(args)
    loading_s = time.perf_counter() - begun
    watch = Stopwatch(translator, device)

    def once() -> tuple[float, float]:
        begun, begun_cpu = watch.now(), time.process_time()
        outcomes = list(translator.stream(videos, batch=args.batch))
        unread = [outcome for outcome in outcomes if outcome.translation is None]
        if unread:
            raise UsageError(f"{len(unread)} videos cannot be read", where=unread[0].name)
        return watch.now() - begun, time.process_time() - begun_cpu

    list(translator.stream(videos[: args.batch], batch=args.batch))  # warm
    rounds = [once() for _ in range(args.rounds)]
    with watch.running():
        stopped_s, _ = once()
    seconds = [wall for wall, _ in rounds]
    cpu_s = min(cpu for _, cpu in rounds)
    parts = watch.seconds | {"other": stopped_s - sum(watch.seconds.values())}
    return {
        "videos": len(videos),
        "loading_s": loading_s,
        "rounds_s": seconds,
        "best_per_s": len(videos) / min(seconds),
        "median_per_s": len(videos) / statistics.median(seconds),
        "per_cpu_s": len(videos) / cpu_s,
        "cpu_per_s": len(videos) / cpu_s * torch.get_num_threads(),
        "stopwatch_s": stopped_s,
        "parts_s": parts,
        "shares": {name: part / stopped_s for name, part in parts.items()},
        "decoding_s": watch.decoding_s,
    }


def show(result: dict[str, Any], args: argparse.Namespace, device: torch.device) -> None:
    """Print the measurements."""
    loaded = f"the model was loaded in {result['loading_s']:.1f} s"
    print(f"{result['videos']} videos, batches of {args.batch}; {loaded}")
    line = f"videos/s: {result['best_per_s']:.2f} best, {result['median_per_s']:.2f} median"
    if device.type == "cpu":
        line += f"; {result['cpu_per_s']:.2f} by CPU time on {torch.get_num_threads()} threads"
    print(line)
    print("  ".join(f"{name} {share:.1%}" for name, share in result["shares"].items()))
    print(
        f"decoding, in its threads: {result['decoding_s']:.2f} s CPU; the rest {result['stopwatch_s']:.2f} s"
    )
    if args.size is None and device.type == "cpu":
        fast = max(result["best_per_s"], result["cpu_per_s"])
        print(f"videos/s: target {TARGET_PER_S:g}: {'reached' if fast >= TARGET_PER_S else 'missed'}")
    share = result["shares"]["encoder"] + result["shares"]["words"]
    if args.size == "7b":
        reached = "reached" if share <= TARGET_SHARE else "missed"
        print(f"encoder and words {share:.1%}: target at most {TARGET_SHARE:.0%}: {reached}")


def show_energies(paths: Sequence[str]) -> None:
    """Print for each video the energies below which 5, 25, 50, 75 and 95 % of its frames lie."""
    for video in collect_video_inputs(paths, lambda: b""):
        levels = np.percentile(motion_energies(video.decode_all(96)), (5, 25, 50, 75, 95))
        print(video.name, *(f"{level:.2f}" for level in levels), sep="\t")


def main() -> None:
    """Measure, print, write the JSON."""
    args = arguments()
    if args.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    try:
        if args.energy:
            return show_energies(args.paths)
        facts = machine.facts(device)
        where = facts["machine"]["gpu"] or facts["machine"]["cpu"]
        print(f"{where}; {facts['threads']} threads; torch {facts['versions']['torch']}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            result = measure(args, device, Path(folder))
    except UsageError as error:
        sys.exit(f"bench_translate: {error}")
    show(result, args, device)
    if args.json:
        options = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**facts, "options": options, **result}, indent=2) + "\n")
