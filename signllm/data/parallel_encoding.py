"""Clips → samples in order, encoded by processes ahead of the writer, and the fingerprint of what went in."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, TypeVar

from signllm.data.sample_encoding import EncodeConfig, EncodedSample, encode_sample
from signllm.data.shared_waits import SharedWaits
from signllm.data.source_samples import LeftOutSample, SourceSample
from signllm.errors import UsageError
from signllm.storage import set_storage_wait_policy, storage_timeout_s, wait_for_storage

Result = TypeVar("Result")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_AHEAD = 4
"""Results per worker that may wait for the writer: enough to keep all busy, a bound on memory."""


def encode_samples(
    clips: Sequence[SourceSample], config: EncodeConfig, workers: int
) -> Generator[EncodedSample | LeftOutSample]:
    """Yield each clip's sample, or why there is none, in the order of the clips under any number of workers.

    Raises:
        UsageError: a worker process died, which is what running out of memory looks like.
        StorageError: the storage of a video stayed away.
    """
    devices = {folder: _read_device(folder) for folder in {clip.video.parent for clip in clips}}
    jobs = ((clip, config, devices[clip.video.parent]) for clip in clips)
    yield from map_in_processes(_encode_sample, jobs, workers)


def _encode_sample(
    clip: SourceSample, config: EncodeConfig, device: int | None
) -> EncodedSample | LeftOutSample:
    """Return a clip's sample, or why there is none.

    Args:
        clip: which one.
        config: how to encode it.
        device: number of the file system on which its folder lay when sharding began; None: there was no
            such folder.
    """

    def attempt() -> EncodedSample | LeftOutSample:
        made = encode_sample(clip, config)
        folder = clip.video.parent
        if isinstance(made, LeftOutSample) and device is not None and not os.path.lexists(clip.video):
            if _read_device(folder) != device:  # a missing video is left out, an unmounted folder is not
                raise OSError(errno.ENOTCONN, "the folder of the video is not there any more", str(folder))
        return made

    return wait_for_storage(attempt, clip.video)


def _read_device(folder: Path) -> int | None:
    try:
        return wait_for_storage(folder.stat, folder).st_dev
    except OSError:
        return None


def map_in_processes(
    function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]], workers: int
) -> Generator[Result]:
    """Yield ``function(*job)`` for each job, in order; with one worker in this process.

    Raises:
        UsageError: a worker process died, which is what running out of memory looks like.
    """
    if workers == 1:
        yield from (function(*job) for job in jobs)
        return
    context, others, waits = get_context("spawn"), set(active_children()), SharedWaits()
    with _block_stop_signals():
        pool = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_begin_worker,
            initargs=(os.getpid(), storage_timeout_s(), waits),
        )
    with pool:
        try:
            waiting: deque[Future[Result]] = deque()
            for job in jobs:
                with _block_stop_signals():
                    waiting.append(pool.submit(function, *job))
                if len(waiting) >= workers * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            for worker in (
                set(active_children()) - others
            ):  # they ignore the SIGTERM by which the pool would end them
                worker.kill()
            raise UsageError(
                "a worker process was killed, perhaps for lack of memory",
                remedy="run the same command again, with fewer --workers: finished shards are kept",
            ) from None
        finally:
            waits.end()  # the workers are waited for
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _block_stop_signals() -> Iterator[None]:
    """Let a process that is started here begin with the signals blocked that its parent alone answers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(parent: int, timeout_s: float, waits: SharedWaits) -> None:
    """Wait for storage as long as the parent would, and as long as it wants the result."""
    _die_with_parent(parent)
    set_storage_wait_policy(timeout_s, waits.report)


def _die_with_parent(parent: int) -> None:
    """Leave with the parent even if that is killed by SIGKILL, and let the parent alone answer other signals.

    Slurm sends its warning to every process of a job; a worker that died of it would end the run before the
    parent has queued the job again.
    """
    import ctypes
    import sys

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it was killed while this process was starting: the signal never comes
            os._exit(1)


def fingerprint_input(clip: SourceSample) -> str:
    """Return a checksum of all that decides a clip's sample: annotations, and size and time of its video.

    A frame inside a folder that is overwritten in place goes unnoticed; adding or removing one does not.
    Where the dataset lies does not count, so a moved dataset keeps its shards.
    """
    fields = asdict(clip) | {"video": clip.video.name}
    try:
        status = wait_for_storage(clip.video.stat, clip.video)
        fields |= {"size": 0 if os.path.isdir(clip.video) else status.st_size, "mtime_ns": status.st_mtime_ns}
    except OSError as error:
        fields |= {"unreadable": error.errno}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
