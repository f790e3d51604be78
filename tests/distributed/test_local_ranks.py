"""Ranks of this machine: what each is given, and that the first failure's message comes out, once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from signllm.distributed.local_ranks import (
    StoppedEarlyError,
    is_first_rank,
    report_failure,
    run_local_ranks,
    usable_cores,
)
from signllm.errors import RunFailedError, UsageError

FAKE = '''"""Stands in for signllm: what a rank was given, or how it ends."""
import json, os, sys, time
from pathlib import Path
from signllm_real.errors import UsageError
from signllm_real.distributed.local_ranks import StoppedEarlyError, report_failure

what, folder = sys.argv[1], Path(sys.argv[2])
rank = os.environ["RANK"]
if what == "write":
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "OMP_NUM_THREADS", "EXTRA")
    (folder / rank).write_text(json.dumps({name: os.environ.get(name) for name in names}))
elif what == "hang" and rank == "1":
    report_failure(UsageError("bad"), "rank 1 says why"); sys.exit(2)
elif what == "fault" and rank == "1":
    report_failure(ValueError("x"), "a fault"); sys.exit(1)
elif what == "stopped":
    report_failure(StoppedEarlyError("s"), "saved after step 3"); sys.exit(1)
elif what == "die" and rank == "1":
    os._exit(9)
elif what != "stopped":
    (folder / f"waiting-{rank}").touch()
    time.sleep(60)
'''


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a package ``signllm`` first on the ranks' path whose verbs end as the test wants."""
    package = tmp_path / "path" / "signllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(FAKE.replace("signllm_real", "real"))
    checkout = Path(__file__).parents[2]
    real = package.parent / "real"
    (real / "distributed").mkdir(parents=True)
    (real / "__init__.py").write_text("")
    (real / "distributed" / "__init__.py").write_text("")
    for name in ("errors.py", "atomic_files.py", "distributed/local_ranks.py", "distributed/rank_memory.py"):
        (real / name).write_text(
            (checkout / "signllm" / name).read_text().replace("from signllm.", "from real.")
        )
    monkeypatch.chdir(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return tmp_path


def test_each_rank_knows_its_place_and_gets_its_share_of_cores(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    run_local_ranks(["write", str(fake)], ranks=2, environment={"EXTRA": "yes"})
    expected = [json.loads((fake / str(rank)).read_text()) for rank in range(2)]
    assert [(t["RANK"], t["LOCAL_RANK"], t["WORLD_SIZE"]) for t in expected] == [
        ("0", "0", "2"),
        ("1", "1", "2"),
    ]
    assert {t["OMP_NUM_THREADS"] for t in expected} == {str(max(1, usable_cores() // 2))}
    assert {t["EXTRA"] for t in expected} == {"yes"}
    assert dict(os.environ) == before


def test_a_refusal_of_one_rank_stops_the_others_and_is_reported_unchanged(fake: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(UsageError, match=r"^rank 1 says why$"):
        run_local_ranks(["hang", str(fake)], ranks=2)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("how", "expected"), [("fault", "rank 1 failed: a fault"), ("die", "rank 1 ended with exit code 9")]
)
def test_a_rank_that_dies_is_named(fake: Path, how: str, expected: str) -> None:
    with pytest.raises(RunFailedError, match=expected):
        run_local_ranks([how, str(fake)], ranks=2)


def test_an_orderly_stop_is_no_failure(fake: Path) -> None:
    with pytest.raises(StoppedEarlyError, match="saved after step 3"):
        run_local_ranks(["stopped", str(fake)], ranks=2)


def test_a_signal_reaches_the_ranks(fake: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from real.distributed.local_ranks import run_local_ranks\n"
        "run_local_ranks(['sleep', sys.argv[1]], ranks=2)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(fake / "path")], stderr=subprocess.PIPE, text=True
    )
    give_up = time.monotonic() + 120
    while len(list((fake / "path").glob("waiting-*"))) < 2 and time.monotonic() < give_up:
        time.sleep(0.1)
    parent.send_signal(signal.SIGTERM)
    _, err = parent.communicate(timeout=120)
    assert parent.returncode != 0
    assert "stopped by SIGTERM" in err


@pytest.mark.skipif(sys.platform != "linux", reason="the system call is of Linux")
@pytest.mark.parametrize(("parent", "code"), [("os.getppid()", 0), ("os.getppid() + 1", 1)])
def test_a_process_ends_if_its_parent_ended_before_it_could_ask(parent: str, code: int) -> None:
    program = (
        f"import os\nfrom signllm.distributed.local_ranks import end_with_parent\nend_with_parent({parent})"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == code


def test_no_rank_at_all_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="--ranks is 0"):
        run_local_ranks(["score"], ranks=0)


def test_outside_of_ranks_nobody_collects_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert not report_failure(ValueError(), "unheard")
    assert is_first_rank()
    monkeypatch.setenv("RANK", "1")
    assert not is_first_rank()


ENDING = """
import atexit, os, sys, threading, time
import torch.distributed as dist
import signllm.__main__ as program
from signllm.distributed.ranks import start_distributed

class Kept:
    def __del__(self, write=os.write):
        write(1, b"the interpreter was taken apart")

def late():
    time.sleep(0.5)
    print("a thread ended", end=" ")

def main():
    start_distributed()
    atexit.register(print, "and what waits for the end was called", end="")
    threading.Thread(target=late).start()
    return int(sys.argv[1])

kept, program.main = Kept(), main
atexit.register(lambda: print(dist.is_initialized(), end=" "))
program.run()
"""


@pytest.mark.parametrize("code", [0, 1])
def test_a_process_ends_before_threads_can_meet_a_dying_interpreter(code: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, str(code)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout == f"a thread ended and what waits for the end was called{code == 1} "


def new_pages_of_a_large_block(environment: dict[str, str]) -> int:
    """Return how many pages the system hands out when a freed block of 64 MiB is allocated once more."""
    code = (
        "import resource\n"
        "from signllm.distributed.local_ranks import reuse_freed_memory\n"
        "reuse_freed_memory()\n"
        "def touch(): block = bytearray(64 << 20); return len(block)\n"
        "touch()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "touch()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    plain = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    command = [sys.executable, "-c", code]
    return int(subprocess.run(command, env=plain | environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is of glibc")
def test_freed_memory_is_used_again_unless_the_user_decided_otherwise() -> None:
    few = new_pages_of_a_large_block({})
    many = new_pages_of_a_large_block({"MALLOC_MMAP_THRESHOLD_": str(1 << 20)})
    assert many >= 30  # of 2 MiB, where the system hands out huge ones
    assert few < many / 3
