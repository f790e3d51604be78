"""Time and peak memory of every step of CRA over generated characters with planted words, size by size.

A corpus is sentences of planted signs of 2 to 6 characters, often used ones more often (Zipf), one character
in ten wrong, one in three held for 2 to 4 clips. Each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from signllm.cra import composition
from signllm.cra.composition import WordsConfig, compose_words
from signllm.cra.segmentation import WordTable, segment

CODES, SIGNS, SLICE = 256, 300, 1 << 20
STEPS = {
    "mean_run_length": "collapse repeats",
    "collapse_repeats": "collapse repeats",
    "learn_merges": "candidates",
    "count_occurrences": "occurrences",
    "solve_sizes": "transport",
    "_frequencies": "frequencies",
}
HEADERS = ("characters", "step", "seconds", "M characters/s", "peak MB")
NOTES = """\
frequencies are up to eight segmentations of the whole corpus and one count of occurrences. The peak is the
process's resident high-water mark while the step runs, imports and the corpus counted. The last steps split
the collapsed corpus once by each method. composed: all that `signllm compose` does after encoding."""


def main() -> None:
    """Measure size by size, print a table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=NOTES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--characters", type=float, nargs="+", default=[1e6, 1e7], metavar="N")
    parser.add_argument("--video", type=int, default=60, help="mean characters per video, repeats counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    given = parser.parse_args()
    if min(given.characters) < 1 or given.video < 1 or given.threads < 1:
        parser.error("--characters, --video and --threads must be at least 1")
    rows: list[dict[str, Any]] = []
    print(_line(HEADERS))
    for size in map(int, given.characters):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (size, given.video, given.threads, given.seed))
        for row in found:
            rate = row["characters"] / row["seconds"] / 1e6
            cells = (f"{row['characters']:,}", row["step"], f"{row['seconds']:.2f}", f"{rate:.2f}")
            print(_line((*cells, f"{row['peak_bytes'] / 1e6:.0f}")), flush=True)
        rows += found
    if given.json:
        facts = machine.facts(torch.device("cpu")) | {"threads": given.threads}
        asked = {"video": given.video, "seed": given.seed}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({**facts, **asked, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def _line(cells: tuple[str, ...]) -> str:
    return "  ".join(
        text.ljust(18) if place == 1 else text.rjust(14) for place, text in enumerate(cells)
    ).rstrip()


def measure(size: int, video: int, threads: int, seed: int) -> list[dict[str, Any]]:
    """Compose one corpus and return a row per step."""
    torch.set_num_threads(threads)
    characters, counts = corpus(size, video, seed)
    steps: dict[str, dict[str, Any]] = {}
    kept: dict[str, Any] = {}

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            _restart_peak()
            begin = time.perf_counter()
            kept[name] = result = call(*arguments, **named)
            seconds, row = time.perf_counter() - begin, steps.setdefault(STEPS.get(name, name), _row())
            row["seconds"] += seconds
            row["peak_bytes"] = max(row["peak_bytes"], _peak())
            return result

        return run

    for name in STEPS:
        setattr(composition, name, watched(name, getattr(composition, name)))
    begin = time.perf_counter()
    words = compose_words(characters, counts, codes=CODES, codebook="bench", config=WordsConfig())
    composed = {
        "seconds": time.perf_counter() - begin,
        "peak_bytes": max(s["peak_bytes"] for s in steps.values()),
    }
    short, merges = kept["collapse_repeats"], kept["learn_merges"]
    table = WordTable(words.words, CODES + 1, np.array(words.frequencies), merges)
    for method in ("viterbi", "longest", "bpe"):
        watched(f"segment: {method}", segment)(short.characters, short.counts, table, method=method)
    steps["composed"] = composed
    collapsed = len(short.characters)
    return [
        {"step": step, "characters": size, "collapsed": collapsed, "words": len(words.words), **row}
        for step, row in steps.items()
    ]


def _row() -> dict[str, Any]:
    return {"seconds": 0.0, "peak_bytes": 0}


def corpus(size: int, video: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return packed characters and counts, made slice by slice so that making them takes little memory."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 7, SIGNS)
    begins, spelling = np.cumsum(lengths) - lengths, rng.integers(0, CODES, lengths.sum())
    share = 1 / (np.arange(SIGNS) + 10.0)
    characters, filled = np.empty(size, dtype=np.int64), 0
    while filled < size:
        signs = rng.choice(SIGNS, SLICE // 4, p=share / share.sum())
        inside = np.arange(lengths[signs].sum()) - np.repeat(
            np.cumsum(lengths[signs]) - lengths[signs], lengths[signs]
        )
        spelt = spelling[np.repeat(begins[signs], lengths[signs]) + inside]
        spelt = np.where(rng.random(len(spelt)) < 0.1, rng.integers(0, CODES, len(spelt)), spelt)
        held = np.where(rng.random(len(spelt)) < 1 / 3, rng.integers(2, 5, len(spelt)), 1)
        taken = np.repeat(spelt, held)[: size - filled]
        characters[filled : filled + len(taken)] = taken
        filled += len(taken)
    drawn = np.cumsum(rng.integers(max(1, video // 2), video + video // 2 + 1, 2 * size // video + 2))
    ends = np.append(drawn[drawn < size], size)
    return characters, np.diff(ends, prepend=0)


def _restart_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _peak() -> int:
    """Bytes of the resident high-water mark; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) * 1024 if found else 0
