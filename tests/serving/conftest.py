"""A server, started as by the command line, for all tests of the page."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import warm
from tests.inference import trained

CHECKOUT = Path(__file__).parents[2]
LARGEST_MB = 1


@dataclass(frozen=True)
class Served:
    """A running server: its address, its run, videos by id, and the folder of its uploads."""

    address: str
    run: Path
    videos: dict[str, Path]
    uploads: Path


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Start ``signllm serve``, and stop it by Ctrl-C, after which no file may be left."""
    folder = tmp_path_factory.mktemp("serve")
    videos = trained.write_videos(folder / "videos")
    run = trained.write_run(folder / "run", trained.save_sensitive_language_model(folder / "llm"))
    uploads = folder / "uploads"
    uploads.mkdir()
    variables = os.environ | {"TMPDIR": str(uploads), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [warm.python(), "-m", "signllm", "serve", "--run", run, "--port", "0"]
    command += ["--largest-mb", str(LARGEST_MB)]
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=CHECKOUT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready at http://127.0.0.1:"), (folder / "stderr").read_text()
        yield Served(line.split()[2], run, videos, uploads)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, (folder / "stderr").read_text()
    assert "Traceback" not in (folder / "stderr").read_text()
    assert not list(uploads.glob("signllm-*"))
