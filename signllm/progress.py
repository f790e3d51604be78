"""Progress with an estimate of the remaining time, in the same form for every long step of every verb.

On a terminal it is a ``rich`` bar. In a log file (Slurm, CI) it is one line every few seconds, because a
redrawn bar makes a log unreadable. Everything goes to standard error, because standard output is for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

LINE_EVERY_S = 10.0


class Bar(Protocol):
    """What a long step reports its progress to."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Report that ``n`` more units are done, with a ``note`` such as a loss or a file name."""


class _Silent:
    def advance(self, n: int = 1, note: str = "") -> None:
        pass


class _Lines:
    """Progress as lines: when work starts, every ``LINE_EVERY_S`` seconds, and at the end."""

    def __init__(self, total: int, description: str, unit: str) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done, self.note = 0, ""
        self.started = self.written = time.monotonic()

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n
        self.note = note or self.note
        if time.monotonic() - self.written >= LINE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write the line: units done of the total, seconds so far, and seconds left at the present rate."""
        self.written = time.monotonic()
        elapsed_s = self.written - self.started
        left_s = elapsed_s / max(1, self.done) * max(0, self.total - self.done)
        sys.stderr.write(
            f"{self.description}: {self.done}/{self.total} {self.unit}, "
            f"{elapsed_s:.0f} s, {left_s:.0f} s left" + (f", {self.note}" if self.note else "") + "\n"
        )
        sys.stderr.flush()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.write()


@contextmanager
def progress(total: int, description: str, *, unit: str = "it", enabled: bool = True) -> Iterator[Bar]:
    """Show the progress of a step of ``total`` units; only one rank passes ``enabled=True``."""
    if not enabled:
        yield _Silent()
    elif sys.stderr.isatty():
        yield from _rich_bar(total, description, unit)
    else:
        with _Lines(total, description, unit) as lines:
            yield lines


def _rich_bar(total: int, description: str, unit: str) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(description, total=total, note="")

        class _Rich:
            def advance(self, n: int = 1, note: str = "") -> None:
                shown.advance(task, n)
                if note:
                    shown.update(task, note=note)

        yield _Rich()


def print_translations(heading: str, translations: Iterable[tuple[str, str, str]]) -> None:
    """Print hypotheses below their references on standard error.

    Args:
        heading: what they are and which model wrote them.
        translations: id, reference and hypothesis of each video.
    """
    lines = [heading]
    for name, reference, hypothesis in translations:
        lines += [f"  {name}", f"    reference:  {reference}", f"    hypothesis: {hypothesis}"]
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()
