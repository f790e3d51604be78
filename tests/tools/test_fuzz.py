"""A share of what ``tools/fuzz`` does: each mutation ends in a named error, a counted skip, or no harm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fuzz(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, str(ROOT / "tools" / "fuzz"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_mutations_end_well() -> None:
    done = fuzz("--seed", "1", "--count", "150")
    assert done.returncode == 0, done.stdout + done.stderr
    total = next(line for line in done.stdout.splitlines() if line.startswith("all 150 "))
    named, skipped, harmless, failed = map(int, total.split()[2:])
    assert (named + skipped + harmless, failed) == (150, 0)
    assert named > 50
    assert skipped > 5


def test_what_does_not_end_well_fails_and_is_named(tmp_path: Path) -> None:
    """A traceback, a file elsewhere, a dead child: each is reported, and the mutations after it still run."""
    (tmp_path / "sitecustomize.py").write_text(SPOILT)
    done = fuzz("--count", "5", "--children", "1", path=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "mutation 1 of seed 0" in done.stdout
    assert "KeyError: 'spoilt'" in done.stdout
    assert "wrote outside of its folder" in done.stdout
    assert "the child ended with -11" in done.stdout
    assert next(line for line in done.stdout.splitlines() if line.startswith("all 5 ")).split()[-1] == "3"


SPOILT = """
import os, signal
import importlib.abc, importlib.util, sys

class Spoiling(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "fuzzing.probes":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            outcome, calls = module.outcome, []
            def spoilt(probes):
                calls.append(1)
                if len(calls) == 2:
                    raise KeyError("spoilt")
                if len(calls) == 3:
                    open("elsewhere", "w").close()
                if len(calls) == 4:
                    os.kill(os.getpid(), signal.SIGSEGV)
                return outcome(probes)
            module.outcome = spoilt
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Spoiling())
"""
