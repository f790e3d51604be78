"""A signal sets the flag while it is open, and the handlers of before come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from signllm.distributed.local_ranks import StoppedEarlyError
from signllm.distributed.preemption import SIGNALS, PreemptionFlag, preemption_flag, stop_if_preempted


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
    flags = []

    def elsewhere() -> None:
        with PreemptionFlag() as flag:
            flag.request()
            flags.append(flag.requested)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert flags == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_flag_serves_a_verb_and_the_loop_inside_it() -> None:
    with preemption_flag() as verb:
        with preemption_flag() as loop:
            assert loop is verb
        stop_if_preempted(torch.device("cpu"))
        os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(StoppedEarlyError, match="same command continues"):
            stop_if_preempted(torch.device("cpu"))
    stop_if_preempted(torch.device("cpu"))


def test_work_of_one_rank_is_left_where_it_is_and_nothing_swallows_that() -> None:
    def work(done: list[str]) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("never")
        except Exception:
            done.append("swallowed")

    done: list[str] = []
    with PreemptionFlag() as flag:
        with flag.interruptible():
            done.append("unasked")
        for _ in ("asked inside", "asked before"):
            with pytest.raises(StoppedEarlyError), flag.interruptible():
                work(done)
    assert done == ["unasked"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_once_more_ends_at_once(number: signal.Signals) -> None:
    code = """if True:
        import os, sys, time
        from signllm.distributed import preemption
        with preemption.preemption_flag() as flag:
            os.kill(os.getpid(), int(sys.argv[1]))
            os.kill(os.getpid(), int(sys.argv[1]))  # passed on by two: still one request
            time.sleep(preemption.ECHO_S + 0.1)
            print("asked", flag.requested, flush=True)
            os.kill(os.getpid(), int(sys.argv[1]))
            time.sleep(60)
        """
    done = subprocess.run([sys.executable, "-c", code, str(int(number))], capture_output=True, text=True)
    assert done.stdout == "asked True\n"
    assert done.returncode == -number
    assert done.stderr.count("once more ends it at once") == 1
