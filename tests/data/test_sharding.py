"""Tests of worker processes: they ignore signals of a scheduler, and the death of a worker ends the run."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import active_children, get_context

import pytest

from signllm.data.shards.parallel_encoding import STOP_SIGNALS, _die_with_parent, map_in_processes
from signllm.errors import UsageError


def own_id(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_workers_pass_by_what_slurm_sends_to_every_process_of_a_job() -> None:
    """The first signals arrive while the workers are starting."""

    def jobs() -> Iterator[tuple[float]]:
        for _ in range(12):
            yield (0.02,)
            for worker in active_children():
                for number in STOP_SIGNALS:
                    os.kill(worker.pid, number)  # type: ignore[arg-type]

    message = list(map_in_processes(own_id, jobs(), 2))
    assert len(message) == 12
    assert 1 <= len(set(message)) <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems send no signal when a parent ends")
def test_a_worker_whose_parent_was_killed_while_it_started_ends_too() -> None:
    codes = []
    for parent in (os.getpid(), os.getppid()):  # the second is what a worker started by another process sees
        worker = get_context("spawn").Process(target=_die_with_parent, args=(parent,))
        worker.start()
        worker.join()
        codes.append(worker.exitcode)
    assert codes == [0, 1]


def test_a_worker_that_is_killed_ends_the_run_with_a_message() -> None:
    with closing(map_in_processes(own_id, ((0.1,) for _ in range(40)), 3)) as results:
        os.kill(next(results), signal.SIGKILL)
        with pytest.raises(UsageError, match="a worker process was killed"):
            list(results)
    deadline = time.monotonic() + 120
    while active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not active_children()
