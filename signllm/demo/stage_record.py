"""The stages of the demo: what each is for, and the record of those that are finished."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from signllm.atomic_files import atomic_write

STAGES_FILE = "stages.json"
PURPOSES = {
    "film, shard, language model": "draw the videos of an invented sign language, pack them into shards, and"
    " train a small language model on sentences alone, which is frozen afterwards",
    "pretrain": "learn an alphabet of sign characters from the videos alone, without any sentence",
    "compose": "turn each video into its characters, and compose frequent sequences of them into words",
    "finetune": "learn to hand the words of a video to the frozen language model, which writes the sentence",
    "evaluate": "translate unseen sentences, signed by a person whom training has never seen",
    "controls": "train and score two models for comparison: one that is given the true signs, and one whose"
    " video encoder has learnt nothing",
}


class StageRecord:
    """Runs stages that are not finished, one at a time, and keeps the seconds of the finished ones.

    Args:
        folder: of the demo; the record is its ``stages.json``.
        speaks: whether this process prints messages and writes the record; one process at a time does.

    Attributes:
        seconds: by the name of the stage, in the order in which they were finished.
    """

    def __init__(self, folder: Path, *, speaks: bool = True) -> None:
        self.path, self.speaks = folder / STAGES_FILE, speaks
        self.seconds: dict[str, float] = {}

    def read(self) -> None:
        """Read what this process or another one has written."""
        if self.path.is_file():
            self.seconds = json.loads(self.path.read_text(encoding="utf-8"))

    def run(self, name: str, work: Callable[[], object], *, begun: float | None = None) -> None:
        """Do the work of a stage unless it was finished earlier; one that was interrupted counts anew.

        Args:
            name: one of ``PURPOSES``.
            work: what the stage does.
            begun: when it began, as ``time.time()`` says it; by default now.
        """
        if name in self.seconds:
            return
        begun = time.time() if begun is None else begun
        self._say(f"\nStage {list(PURPOSES).index(name) + 1} of {len(PURPOSES)}, {name}: {PURPOSES[name]}.")
        work()
        self.seconds[name] = round(time.time() - begun, 1)
        if self.speaks:
            atomic_write(self.path, json.dumps(self.seconds, indent=1).encode())
        self._say(
            f"This took {self.seconds[name]:.0f} s, all stages so far {sum(self.seconds.values()):.0f} s."
        )

    def _say(self, line: str) -> None:
        if self.speaks:
            print(line, file=sys.stderr, flush=True)
