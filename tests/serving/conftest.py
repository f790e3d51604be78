"""Servers, started as by the command line, for the tests of the page."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
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


@dataclass(frozen=True)
class Model:
    """A run to serve, and videos by id."""

    run: Path
    videos: dict[str, Path]


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("served")
    run = trained.write_run(folder / "run", trained.save_sensitive_language_model(folder / "llm"))
    return Model(run, trained.write_videos(folder / "videos"))


@contextmanager
def serve(folder: Path, model: Model, *options: object, end: int = signal.SIGINT) -> Iterator[Served]:
    """Start ``signllm serve``, and stop it by a signal, after which no file may be left."""
    uploads = folder / "uploads"
    uploads.mkdir(parents=True)
    variables = os.environ | {"TMPDIR": str(uploads), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [warm.python(), "-m", "signllm", "serve", "--run", model.run, "--largest-mb", LARGEST_MB]
    command += options
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
        assert line.startswith("ready at http"), (folder / "stderr").read_text()
        yield Served(line.split()[2], model.run, model.videos, uploads)
        process.send_signal(end)
        assert process.wait(60) == 0, (folder / "stderr").read_text()
    assert "Traceback" not in (folder / "stderr").read_text()
    assert not list(uploads.glob("signllm-*"))


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Iterator[Served]:
    """A server for this machine, with two examples."""
    folder = tmp_path_factory.mktemp("serve")
    examples = folder / "examples"
    examples.mkdir()
    for name in ("clip0", "clip6"):
        shutil.copy(model.videos[name], examples)
    with serve(folder, model, "--port", "0", "--examples", examples) as server:
        yield server
