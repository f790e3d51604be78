"""A signal sets the flag while it is open, and the handlers of before come back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from signllm.training.preemption import SIGNALS, PreemptionFlag


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    seen = []
    before = signal.signal(number, lambda *_: seen.append("outer"))
    try:
        with PreemptionFlag() as flag:
            assert not flag.requested
            os.kill(os.getpid(), number)
            assert flag.requested
        os.kill(os.getpid(), number)
        assert seen == ["outer"]
    finally:
        signal.signal(number, before)


def test_outside_the_main_thread_it_only_remembers() -> None:
    found = []

    def elsewhere() -> None:
        with PreemptionFlag() as flag:
            flag.request()
            found.append(flag.requested)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [True]
    assert signal.getsignal(signal.SIGTERM) is before
