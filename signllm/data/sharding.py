"""Clips → samples in order, encoded by processes ahead of the writer, and the fingerprint of what went in."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any, TypeVar

from signllm.data.clip import Clip, LeftOut
from signllm.data.samples import EncodeConfig, Sample, make_sample
from signllm.errors import UsageError

Result = TypeVar("Result")
_AHEAD = 4
"""Results per worker that may wait for the writer: enough to keep all busy, a bound on memory."""


def encoded(clips: Sequence[Clip], config: EncodeConfig, workers: int) -> Generator[Sample | LeftOut]:
    """Yield each clip's sample, or why there is none, in the order of the clips under any number of workers.

    Raises:
        UsageError: a worker process died, which is what running out of memory looks like.
    """
    yield from in_processes(make_sample, ((clip, config) for clip in clips), workers)


def in_processes(
    function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]], workers: int
) -> Generator[Result]:
    """Yield ``function(*job)`` for each job, in order; with one worker in this process.

    Raises:
        UsageError: a worker process died, which is what running out of memory looks like.
    """
    if workers == 1:
        yield from (function(*job) for job in jobs)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
        try:
            waiting: deque[Future[Result]] = deque()
            for job in jobs:
                waiting.append(pool.submit(function, *job))
                if len(waiting) >= workers * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UsageError(
                "a worker process was killed, perhaps for lack of memory",
                remedy="run the same command again, with fewer --workers: finished shards are kept",
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _die_with_parent() -> None:
    """Leave with the parent even if that is killed by SIGKILL, and let the parent alone answer Ctrl-C."""
    import ctypes
    import sys

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def input_fingerprint(clip: Clip) -> str:
    """Return a checksum of all that decides a clip's sample: annotations, and size and time of its video.

    A frame inside a folder that is overwritten in place goes unnoticed; adding or removing one does not.
    Where the dataset lies does not count, so a moved dataset keeps its shards.
    """
    fields = asdict(clip) | {"video": clip.video.name}
    try:
        status = clip.video.stat()
        fields |= {"size": 0 if os.path.isdir(clip.video) else status.st_size, "mtime_ns": status.st_mtime_ns}
    except OSError as error:
        fields |= {"unreadable": error.errno}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
