"""A watchdog thread that ends a hanging job with a message about what each rank was doing.

Without it, a hang would end in a time-out of the network library, which does not name the guilty rank.

In every rank a thread watches a counter that the main thread increases in each step and each batch of a
validation (:func:`record_progress`). The counter is local: nothing is sent, written or reduced during
training. When it has not changed for ``limit_s``, every rank writes what it is doing into
``run/failures/rank-R.stack.txt``, reads the files of the others, reports them and exits. The main thread
cannot do that, because it waits inside a collective. A rank without a file is stopped, dead or stuck outside
of Python, and the message names it. The thread counts the time of its own waits, so that a job that was
suspended and continued is not taken for a hang.
"""

from __future__ import annotations

import faulthandler
import json
import linecache
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from signllm.distributed.local_ranks import report_failure
from signllm.errors import RunFailedError

STARTUP_LIMIT_S = 900.0
"""Seconds that may pass before the first step: compiling and opening the data take longer than a step."""
PLACES = {
    ("throughput", "next_batch"): "reading a batch",
    ("validation", "validate_if_due"): "validation",
    ("engine_state", "gather_engine_state"): "gathering a checkpoint",
    ("loop", "end_save"): "the end of a save",
    ("engine", "forward"): "the forward pass",
    ("engine", "backward"): "the backward pass",
    ("engine", "take_step"): "the optimizer step",
}
"""A description for users of functions on the stack, by file and function name; the outermost one is used."""
WAITING_CALLS = (".wait()", ".tolist()", ".item()", "synchronize(")
"""Calls in which Python waits for a collective that was started earlier."""
LIBRARY_PATHS = ("/torch/", "/deepspeed/", "<frozen")


class Watchdog(threading.Thread):
    """A thread that ends this process when no rank makes progress.

    Args:
        run: the run folder, which all ranks can see.
        rank: this rank.
        world: number of ranks.
        doing: the stage or verb, for the message.
        limit_s: seconds without a call of :func:`record_progress` that count as a hang. Before the first step
            the limit is ``STARTUP_LIMIT_S`` if that is larger.

    Attributes:
        progress_count: number of calls of :func:`record_progress`.
        step: the step that this rank has begun last; 0 before the first.
        is_reporting: whether this rank has found a hang and is about to report it.
    """

    def __init__(self, run: Path, *, rank: int, world: int, doing: str, limit_s: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.folder, self.rank, self.world, self.doing, self.limit_s = run, rank, world, doing, limit_s
        self.folder = run / "failures"
        self.interval_s = min(5.0, limit_s / 10)
        self.progress_count, self.step = 0, 0
        self.is_reporting = False
        self._watched_thread = threading.get_ident()
        self._ended = threading.Event()

    def run(self) -> None:
        """Watch until :meth:`end` is called."""
        last_count, idle_s = self.progress_count, 0.0
        while not self._ended.wait(self.interval_s):
            idle_s = idle_s + self.interval_s if self.progress_count == last_count else 0.0
            last_count = self.progress_count
            if idle_s >= (self.limit_s if self.step else max(self.limit_s, STARTUP_LIMIT_S)):
                self._report_hang(last_count)
                idle_s = 0.0

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self.join()

    def stack_file(self, rank: int) -> Path:
        """Return the file into which a rank writes its stack."""
        return self.folder / f"rank-{rank}.stack.txt"

    def _report_hang(self, last_count: int) -> None:
        """Write this rank's stack, read the others', and end the process unless progress resumes."""
        self.is_reporting = True
        local = describe_stack(sys._current_frames().get(self._watched_thread)) | {"step": self.step}
        self.folder.mkdir(parents=True, exist_ok=True)
        detected = time.time()
        with self.stack_file(self.rank).open("w") as file:
            file.write(json.dumps(local) + "\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        has_ended = self._ended.wait(3 * self.interval_s)
        if has_ended or self.progress_count != last_count:
            self.stack_file(self.rank).unlink(missing_ok=True)
            self.is_reporting = False
            return
        stacks = self._read_stacks(detected)
        message = diagnose_hang(stacks, self.world, doing=self.doing, limit_s=self.limit_s)
        message += f"\n  where:  every rank's stack is in {self.folder}/rank-*.stack.txt"
        if not report_failure(RunFailedError(message), message):
            os.write(2, f"signllm: {message}\n".encode())
        os._exit(1)

    def _read_stacks(self, detected: float) -> dict[int, dict[str, Any]]:
        """Return what :func:`describe_stack` gave on each rank that wrote it about this hang."""
        stacks = {}
        for rank in range(self.world):
            try:
                file = self.stack_file(rank)
                if file.stat().st_mtime > detected - self.limit_s / 2:
                    stacks[rank] = json.loads(file.read_text().partition("\n")[0])
            except (OSError, ValueError):
                continue
        return stacks


def current_watchdog() -> Watchdog | None:
    """Return the running watchdog of this process, found among its threads."""
    return next((thread for thread in threading.enumerate() if isinstance(thread, Watchdog)), None)


def record_progress(step: int | None = None) -> None:
    """Tell the watchdog, if one runs, that this rank makes progress, and which step it begins."""
    dog = current_watchdog()
    if dog is not None:
        dog.progress_count += 1
        dog.step = dog.step if step is None else step


def describe_stack(frame: FrameType | None) -> dict[str, Any]:
    """Return what a thread is doing.

    Returns:
        ``place``: a description for users, or None; ``collective``: the function of ``torch.distributed``
            that it is
        in, or None; ``waits``: whether it waits for other ranks; ``at``: file, line number and source line.
    """
    place, at, collective = None, "", None
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        place = PLACES.get((Path(file).stem, name), place)
        if file.endswith("distributed_c10d.py") and collective is None:
            collective = name
        if not at and not any(part in file for part in LIBRARY_PATHS):
            line = linecache.getline(file, frame.f_lineno).strip()
            at = f"{'/'.join(Path(file).parts[-3:])}:{frame.f_lineno}: {line}"
        frame = frame.f_back
    waits = collective is not None or any(word in at for word in WAITING_CALLS)
    return {"place": place, "collective": collective, "waits": waits, "at": at}


def diagnose_hang(stacks: Mapping[int, Mapping[str, Any]], world: int, *, doing: str, limit_s: float) -> str:
    """Return a message about which rank causes a hang.

    Args:
        stacks: the result of :func:`describe_stack`, with ``step`` added, of each rank that wrote one.
        world: number of ranks.
        doing: the stage or verb.
        limit_s: seconds for which nothing happened.
    """
    silent = [rank for rank in range(world) if rank not in stacks]
    lines = [f"{doing} hangs: no rank has made progress for {limit_s:g} s"]
    if silent:
        verb = "does" if len(silent) == 1 else "do"
        lines.append(f"  {_ranks(silent)} {verb} not answer: stopped, dead, or stuck outside of Python")
    groups: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for rank, stack in sorted(stacks.items()):
        inside = " of ".join(filter(None, (stack["collective"], stack["place"] or doing)))
        step = f", step {stack['step']}" if stack["step"] else ""
        groups[stack["waits"], f"{inside}{step} ({stack['at']})"].append(rank)
    for (waits, place), ranks in sorted(groups.items()):
        if waits:
            verb = "waits for others in" if len(ranks) == 1 else "wait for others in"
        else:
            verb = "is in" if len(ranks) == 1 else "are in"
        lines.append(f"  {_ranks(ranks)} {verb} {place}")
    if not silent and all(waits for waits, _ in groups):
        lines.append(
            "  each waits for another: some rank has called one collective more or less than the others"
        )
    return "\n".join(lines)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
