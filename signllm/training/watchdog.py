"""A hang ends the job with a message that says which rank is where, instead of a time-out of the network.

In every rank a thread watches the main one, which counts each step and each batch of a validation
(:func:`beat`, a counter in memory: nothing is sent, written or reduced while training goes on). Where the
counter stands still for ``limit_s``, every rank leaves what it is doing in ``run/failures/rank-R.stack.txt``,
reads what the others left, tells it and ends: the main thread cannot, for it waits inside a collective. A
rank that leaves nothing is stopped, dead or stuck outside of Python, and is named for that. Time is counted
in the thread's own waits, so a job that was suspended as a whole has not hung.
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

from signllm.errors import RunFailedError
from signllm.training.local_ranks import report_failure

START_UP_S = 900.0
PLACES = {
    ("throughput", "waiting"): "reading a batch",
    ("validation", "run"): "validation",
    ("partitions", "read_whole"): "gathering a checkpoint",
    ("loop", "end_save"): "the end of a save",
    ("engine", "forward"): "the forward pass",
    ("engine", "backward"): "the backward pass",
    ("engine", "take_step"): "the optimizer step",
}
"""What a function on the stack, by file and name, means to a user; the outermost one counts."""
WAITS = (".wait()", ".tolist()", ".item()", "synchronize(")
"""Where Python waits for a collective that was begun before."""
NO_CODE_OF_OURS = ("/torch/", "/deepspeed/", "<frozen")


class Watchdog(threading.Thread):
    """Ends this process when the ranks stand still.

    Args:
        run: the run folder, seen by all ranks.
        rank: this one.
        world: how many there are.
        doing: stage or verb, for the message.
        limit_s: seconds without a :func:`beat` that are a hang; before the first step ``START_UP_S``, if
            that is more.
    """

    def __init__(self, run: Path, *, rank: int, world: int, doing: str, limit_s: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.folder, self.rank, self.world, self.doing, self.limit_s = run, rank, world, doing, limit_s
        self.folder = run / "failures"
        self.every_s = min(5.0, limit_s / 10)
        self.beats, self.step = 0, 0
        self.tells = False
        self._watched = threading.get_ident()
        self._ended = threading.Event()

    def run(self) -> None:
        """Watch until :meth:`end`."""
        seen, still_s = self.beats, 0.0
        while not self._ended.wait(self.every_s):
            still_s = still_s + self.every_s if self.beats == seen else 0.0
            seen = self.beats
            if still_s >= (self.limit_s if self.step else max(self.limit_s, START_UP_S)):
                self._tell(seen)
                still_s = 0.0

    def end(self) -> None:
        """Watch no longer."""
        self._ended.set()
        self.join()

    def file_of(self, rank: int) -> Path:
        """Return where a rank leaves what it is doing."""
        return self.folder / f"rank-{rank}.stack.txt"

    def _tell(self, seen: int) -> None:
        """Leave this rank's stack, read the others', end the process; unless the ranks go on after all."""
        self.tells = True
        mine = standing(sys._current_frames().get(self._watched)) | {"step": self.step}
        self.folder.mkdir(parents=True, exist_ok=True)
        asked = time.time()
        with self.file_of(self.rank).open("w") as file:
            file.write(json.dumps(mine) + "\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        going_on = self._ended.wait(3 * self.every_s)
        if going_on or self.beats != seen:
            self.file_of(self.rank).unlink(missing_ok=True)
            self.tells = False
            return
        message = account(self._answers(asked), self.world, doing=self.doing, limit_s=self.limit_s)
        message += f"\n  where:  every rank's stack is in {self.file_of(self.rank).parent}/rank-*.stack.txt"
        if not report_failure(RunFailedError(message), message):
            os.write(2, f"signllm: {message}\n".encode())
        os._exit(1)

    def _answers(self, asked: float) -> dict[int, dict[str, Any]]:
        """Return what the ranks have left in this hang, by rank."""
        found = {}
        for rank in range(self.world):
            try:
                file = self.file_of(rank)
                if file.stat().st_mtime > asked - self.limit_s / 2:
                    found[rank] = json.loads(file.read_text().partition("\n")[0])
            except (OSError, ValueError):
                continue
        return found


def watchdog() -> Watchdog | None:
    """Return the watchdog of this process; its running thread is the one record of it."""
    return next((thread for thread in threading.enumerate() if isinstance(thread, Watchdog)), None)


def beat(step: int | None = None) -> None:
    """Say that this rank goes on, and which step it begins; nothing where nobody watches."""
    dog = watchdog()
    if dog is not None:
        dog.beats += 1
        dog.step = dog.step if step is None else step


def standing(frame: FrameType | None) -> dict[str, Any]:
    """Say what a thread does: ``place`` in a user's words, the source line ``at``, and if it ``waits``."""
    place, at, collective = None, "", None
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        place = PLACES.get((Path(file).stem, name), place)
        if file.endswith("distributed_c10d.py") and collective is None:
            collective = name
        if not at and not any(part in file for part in NO_CODE_OF_OURS):
            line = linecache.getline(file, frame.f_lineno).strip()
            at = f"{'/'.join(Path(file).parts[-3:])}:{frame.f_lineno}: {line}"
        frame = frame.f_back
    waits = collective is not None or any(word in at for word in WAITS)
    return {"place": place, "collective": collective, "waits": waits, "at": at}


def account(answers: Mapping[int, Mapping[str, Any]], world: int, *, doing: str, limit_s: float) -> str:
    """Say who is at fault, from what the ranks that answered are doing.

    Args:
        answers: what :func:`standing` said, and ``step``, by rank.
        world: how many ranks there are.
        doing: stage or verb.
        limit_s: how long nothing happened.
    """
    silent = [rank for rank in range(world) if rank not in answers]
    lines = [f"{doing} stands still: no rank has gone on for {limit_s:g} s"]
    if silent:
        do = "does" if len(silent) == 1 else "do"
        lines.append(f"  {_ranks(silent)} {do} not answer: stopped, dead, or stuck outside of Python")
    groups: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for rank, told in sorted(answers.items()):
        inside = " of ".join(filter(None, (told["collective"], told["place"] or doing)))
        step = f", step {told['step']}" if told["step"] else ""
        groups[told["waits"], f"{inside}{step} ({told['at']})"].append(rank)
    for (waits, place), ranks in sorted(groups.items()):
        one = len(ranks) == 1
        do = (
            ("waits for others in" if one else "wait for others in")
            if waits
            else ("is in" if one else "are in")
        )
        lines.append(f"  {_ranks(ranks)} {do} {place}")
    if not silent and all(waits for waits, _ in groups):
        lines.append(
            "  each waits for another: some rank has made one collective more or less than the others"
        )
    return "\n".join(lines)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
