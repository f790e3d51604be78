"""Time and peak memory of every step of CRA over generated characters with planted words, size by size.

A corpus is sentences of planted signs of 2 to 6 characters, often used ones more often (Zipf), one character
in ten wrong, one in three repeated for 2 to 4 clips; it is stored as `signllm compose` stores it. Each size
runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from signllm.cra import composition
from signllm.cra.composition import WordsConfig, compose_words
from signllm.cra.segmentation import WordTable, count_words
from signllm.data.loading.characters import (
    characters_path,
    list_characters_files,
    load_packed_characters,
    save_characters,
)

CODES, SIGNS, SHARD_SIGNS = 256, 300, 1 << 18
STEPS = {
    "mean_run_length": "mean run length",
    "collapse_corpus": "collapse repeats",
    "learn_merges": "candidates",
    "count_occurrences": "occurrences",
    "solve_sizes": "transport",
    "_add_description_lengths": "description lengths",
    "word_frequencies": "frequencies",
}
METHODS = ("viterbi", "longest", "bpe")
HEADERS = ("characters", "step", "seconds", "CPU s", "M characters/s", "peak MB")
GROWTH = ("characters", "seconds", "CPU s", "x CPU", "M/s", "peak MB", "+B/char", *METHODS, "load")
NOTES = """\
CPU s: of all threads; it tells the work where others use the machine. The peak is the process's resident
high-water mark while the step runs, imports counted. frequencies are up to eight segmentations of the whole
corpus and one count of occurrences. The last steps split the collapsed corpus once by each method into all
candidates (about 1,000 words) on one core. composed: all that `signllm compose` does after encoding.
The second table is one line per size. x CPU: CPU seconds as a multiple of the line above. +B/char: by so many
bytes per further character the peak rose from the line above. viterbi, longest, bpe: million collapsed
characters per second of one core's time. load: the machine's load average of one minute, ours
counted, when words were composed."""


def main() -> None:
    """Measure size by size, print two tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=NOTES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--characters", type=float, nargs="+", default=[1e6, 1e7], metavar="N")
    parser.add_argument("--video", type=int, default=60, help="mean characters per video, repeats counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    args = parser.parse_args()
    if min(args.characters) < 1 or args.video < 1 or args.threads < 1:
        parser.error("--characters, --video and --threads must be at least 1")
    rows: list[dict[str, Any]] = []
    print(_line(HEADERS), flush=True)
    for size in map(int, args.characters):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows += pool.apply(measure, (size, args.video, args.threads, args.seed))
    print("\n" + "\n".join("  ".join(text.rjust(11) for text in line) for line in (GROWTH, *_growth(rows))))
    if args.json:
        facts = machine.facts(torch.device("cpu")) | {"threads": args.threads}
        asked = {"video": args.video, "seed": args.seed}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**facts, **asked, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    rate = row["handled"] / row["seconds"] / 1e6
    times = f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", f"{rate:.2f}"
    return f"{row['characters']:,}", row["step"], *times, f"{row['peak_bytes'] / 1e6:.0f}"


def _line(cells: tuple[str, ...]) -> str:
    return "  ".join(
        text.ljust(18) if place == 1 else text.rjust(14) for place, text in enumerate(cells)
    ).rstrip()


def _growth(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield a line per size, from its row "composed" and its rows of segmentation."""
    before: dict[str, Any] = {}
    for composed in (row for row in rows if row["step"] == "composed"):
        size, more = composed["characters"], composed["characters"] - before.get("characters", 0)
        rise = composed["peak_bytes"] - before.get("peak_bytes", 0)
        steps = {row["step"]: row for row in rows if row["characters"] == size}
        cuts = [steps[f"segment: {method}"] for method in METHODS]
        yield (
            f"{size:,}",
            f"{composed['seconds']:.1f}",
            f"{composed['cpu_seconds']:.1f}",
            f"{composed['cpu_seconds'] / before['cpu_seconds']:.1f}" if before else "-",
            f"{size / composed['seconds'] / 1e6:.2f}",
            f"{composed['peak_bytes'] / 1e6:.0f}",
            f"{rise / more:.1f}" if before and more else "-",
            *(f"{cut['handled'] / cut['cpu_seconds'] / 1e6:.1f}" for cut in cuts),
            f"{composed['load']:.1f}",
        )
        before = composed


def measure(size: int, video: int, threads: int, seed: int) -> list[dict[str, Any]]:
    """Compose one corpus; print and return a row per step."""
    torch.set_num_threads(threads)
    watch = Watch(size)
    with tempfile.TemporaryDirectory() as folder:
        paths = _write(Path(folder), corpus(size, video, seed))
        begin, cpu = time.perf_counter(), time.process_time()
        characters, counts = watch("load", load_packed_characters)(paths)
    for name, step in STEPS.items():
        setattr(composition, name, watch(step, getattr(composition, name)))
    words = compose_words(characters, counts, codes=CODES, codebook="bench", config=WordsConfig())
    composed = {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": max(row["peak_bytes"] for row in watch.rows),
        "load": os.getloadavg()[0],
        "words": len(words.words),
    }
    watch.add("composed", composed)
    short, merges = watch.results["collapse_corpus"], watch.results["learn_merges"]
    watch.handled = len(short.characters)
    candidates = tuple(dict.fromkeys(left + right for left, right in merges))
    table = WordTable(candidates, CODES + 1, watch.results["count_occurrences"], merges)
    for method in METHODS:
        watch(f"segment: {method}", count_words)(short.characters, short.counts, table, method=method)
    return watch.rows


class Watch:
    """Functions that are timed as steps; a call inside another's counts as the outer's.

    Attributes:
        size: characters of the corpus.
        handled: how many of them the steps from now on handle: at first all.
        rows: one of each step.
        results: what each function returned, by its name.
    """

    def __init__(self, size: int) -> None:
        self.size = self.handled = size
        self.rows: list[dict[str, Any]] = []
        self.results: dict[str, Any] = {}
        self._is_inside = False

    def __call__(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``call``, watched as the step."""

        def run(*arguments: Any, **named: Any) -> Any:
            if self._is_inside:
                return call(*arguments, **named)
            self._is_inside = True
            _restart_peak()
            begin, cpu = time.perf_counter(), time.process_time()
            result = self.results[call.__name__] = call(*arguments, **named)
            times = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
            self.add(step, times | {"peak_bytes": _peak()})
            self._is_inside = False
            return result

        return run

    def add(self, step: str, measured: dict[str, Any]) -> None:
        """Add a row and print it."""
        row = {"step": step, "characters": self.size, "handled": self.handled, **measured}
        self.rows.append(row)
        print(_line(_cells(row)), flush=True)


def _write(run: Path, shards: Iterator[tuple[np.ndarray, np.ndarray]]) -> list[Path]:
    """Write the characters of each shard into a run folder; return the files."""
    for shard, (characters, counts) in enumerate(shards):
        sequences = np.split(characters, np.cumsum(counts)[:-1])
        named = {f"video-{shard}-{place}": sequence for place, sequence in enumerate(sequences)}
        save_characters(characters_path(run, "train", shard), named, "bench")
    return list_characters_files(run, "train")


def corpus(size: int, video: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield packed characters and counts of a shard after the other, ``size`` characters in all."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 7, SIGNS)
    begins, spelling = np.cumsum(lengths) - lengths, rng.integers(0, CODES, lengths.sum())
    share = 1 / (np.arange(SIGNS) + 10.0)
    while size > 0:
        signs = rng.choice(SIGNS, SHARD_SIGNS, p=share / share.sum())
        inside = np.arange(lengths[signs].sum()) - np.repeat(
            np.cumsum(lengths[signs]) - lengths[signs], lengths[signs]
        )
        spelt = spelling[np.repeat(begins[signs], lengths[signs]) + inside]
        spelt = np.where(rng.random(len(spelt)) < 0.1, rng.integers(0, CODES, len(spelt)), spelt)
        repeats = np.where(rng.random(len(spelt)) < 1 / 3, rng.integers(2, 5, len(spelt)), 1)
        characters = np.repeat(spelt, repeats)[:size]
        drawn = rng.integers(max(1, video // 2), video + video // 2 + 1, 2 * len(characters) // video + 2)
        ends = np.cumsum(drawn)
        ends = np.append(ends[ends < len(characters)], len(characters))
        yield characters, np.diff(ends, prepend=0)
        size -= len(characters)


def _restart_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _peak() -> int:
    """Return the peak resident memory in bytes; 0 without /proc."""
    status = Path("/proc/self/status")
    match = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(match[1]) * 1024 if match else 0
