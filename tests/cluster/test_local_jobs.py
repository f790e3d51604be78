"""Jobs without a scheduler, asked to leave: by SIGTERM, by Ctrl-C, and by somebody who insists."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests import warm
from tests.cluster.slurm import until
from tests.cluster.test_by_hand import ROOT, TINY, assert_equal, environment, pretrain, straight
from tests.cluster.test_preemption import lines

__all__ = ["straight"]
CODE = """
import sys
from pathlib import Path
from signllm.cluster.launch import launch
from signllm.cluster.local_jobs import run_local_jobs
from signllm.distributed.local_ranks import describe_error
from tests.cluster.test_preemption import HERE
from tests.cluster.training import verb_on_rank
logs, *words = sys.argv[1:]
try:
    run_local_jobs([lambda: launch(HERE, ["", logs, *words], run=verb_on_rank, logs=Path(logs))], at_once=1)
except (Exception, KeyboardInterrupt) as error:
    print(describe_error(error)[0], file=sys.stderr)
    sys.exit(describe_error(error)[1])
"""


class Launched:
    """A launch in a terminal of its own, its first rank held after some steps."""

    def __init__(self, composed: Path, run: Path, logs: Path) -> None:
        command = [sys.executable, "-c", CODE, str(logs), *pretrain(composed, run)]
        self.shown = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # who tests in a background ignores it
        )
        until(lambda: lines(run / "log.jsonl") >= 2, "the first steps", every_s=0.005)
        self.processes = psutil.Process(self.shown.pid).children(recursive=True)
        self.shell = self.processes[0]
        [self.first] = [p for p in self.processes if p.environ().get("SUBMITIT_LOCAL_GLOBALID") == "0"]
        self.first.suspend()

    def end(self) -> str:
        """Return what it said; nothing of it is left."""
        _, printed = self.shown.communicate(timeout=120)
        assert self.shown.returncode == 1
        assert "Traceback" not in printed
        psutil.wait_procs(self.processes, timeout=10)
        assert [p for p in self.processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
        return str(printed)


@pytest.fixture
def launched(composed: Path, tmp_path: Path) -> Iterator[Launched]:
    launched = Launched(composed, tmp_path / "run", tmp_path / "logs")
    yield launched
    launched.shown.kill()
    for process in launched.processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def to_what_shows_it(launched: Launched) -> None:
    launched.shown.send_signal(signal.SIGTERM)


def in_its_terminal(launched: Launched) -> None:
    os.killpg(launched.shown.pid, signal.SIGINT)


@pytest.mark.parametrize("ask", [to_what_shows_it, in_its_terminal])
def test_ranks_save_and_leave(
    ask: Callable[[Launched], None], launched: Launched, composed: Path, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    steps = lines(run / "log.jsonl")
    ask(launched)
    until(lambda: not launched.shell.is_running(), "the end of what would start the ranks again")
    launched.first.resume()
    printed = launched.end()
    assert re.search(r"asked to stop: .*after step \d+", printed)
    assert printed.endswith("asked to stop: what is done is kept; the same command continues\n")
    assert 2 <= steps <= lines(run / "log.jsonl") < 40
    done = warm.run_ranks(TINY, *pretrain(composed, run), ranks=2)
    assert done.codes == [0, 0], done.stderr
    assert_equal(run, straight)


def test_who_insists_need_not_wait_for_ranks_that_hang(launched: Launched) -> None:
    launched.shown.send_signal(signal.SIGINT)
    until(lambda: not launched.shell.is_running(), "the end of what would start the ranks again")
    time.sleep(1.1)  # sooner it would be an echo
    launched.shown.send_signal(signal.SIGINT)
    assert "interrupted" in launched.end()
