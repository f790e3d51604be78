"""A clock that only sleeping moves: waits of minutes are tested in no time."""

from __future__ import annotations

import time


class Clock:
    """Takes the place of the module ``time`` in a module under test."""

    strftime, localtime = staticmethod(time.strftime), staticmethod(time.localtime)

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return 1.7e9 + self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
