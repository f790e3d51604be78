"""Writing in the background: one piece at a time, and what goes wrong comes out where it is waited for."""

from __future__ import annotations

import threading

import pytest

from signllm.training.writer import BackgroundWriter


def test_it_writes_while_the_caller_goes_on() -> None:
    writer, may_end, done = BackgroundWriter(), threading.Event(), []

    def write() -> None:
        assert may_end.wait(60)
        done.append(1)

    writer.start(write)
    assert done == []
    may_end.set()
    writer.wait()
    assert done == [1]
    assert not writer.failed
    writer.wait()


def test_an_error_is_logged_before_it_is_raised_and_once() -> None:
    writer = BackgroundWriter()

    def write() -> None:
        raise OSError("no disk")

    writer.start(write)
    writer.finish()
    assert writer.failed
    with pytest.raises(OSError, match="no disk"):
        writer.wait()
    assert not writer.failed
    writer.wait()
    writer.start(lambda: None)
    writer.wait()
