"""Encoding samples in parallel processes in their order, and the fingerprint of the input of a sample."""

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

from signllm.data.shards.sample_encoding import EncodeConfig, EncodedSample, encode_sample
from signllm.data.shared_waits import SharedWaits
from signllm.data.source_samples import LeftOutSample, SourceSample
from signllm.errors import UsageError
from signllm.storage import set_storage_wait_policy, storage_timeout_s, wait_for_storage

Result = TypeVar("Result")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_RESULTS_PER_WORKER = 4
"""Results per worker that may wait for the writer; enough to keep all workers busy in limited memory."""


def encode_samples(
    samples: Sequence[SourceSample], config: EncodeConfig, workers: int
) -> Generator[EncodedSample | LeftOutSample]:
    """Yield each encoded sample, or the reason why it is left out, in order for any number of workers.

    Raises:
        UsageError: a worker process died, as it does when the machine runs out of memory.
        StorageError: the storage of a video stayed unavailable.
    """
    devices = {folder: _read_device(folder) for folder in {sample.video.parent for sample in samples}}
    jobs = ((sample, config, devices[sample.video.parent]) for sample in samples)
    yield from map_in_processes(_encode_sample, jobs, workers)


def _encode_sample(
    sample: SourceSample, config: EncodeConfig, device: int | None
) -> EncodedSample | LeftOutSample:
    """Encode one sample, or return the reason why it is left out.

    Args:
        sample: the sample.
        config: how it is encoded.
        device: number of the file system of its folder when sharding started, None if the folder did not
            exist.
    """

    def attempt() -> EncodedSample | LeftOutSample:
        result = encode_sample(sample, config)
        folder = sample.video.parent
        if isinstance(result, LeftOutSample) and device is not None and not os.path.lexists(sample.video):
            # A missing video is left out. If the folder has been unmounted, however, its storage is waited
            # for.
            if _read_device(folder) != device:
                raise OSError(errno.ENOTCONN, "the folder of the video has disappeared", str(folder))
        return result

    return wait_for_storage(attempt, sample.video)


def _read_device(folder: Path) -> int | None:
    """Return the number of the file system of a folder, None if the folder does not exist."""
    try:
        return wait_for_storage(folder.stat, folder).st_dev
    except OSError:
        return None


def map_in_processes(
    function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]], workers: int
) -> Generator[Result]:
    """Yield ``function(*job)`` for each job in order; one worker means this process.

    Raises:
        UsageError: a worker process died, as it does when the machine runs out of memory.
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
                if len(waiting) >= workers * _RESULTS_PER_WORKER:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            for worker in (
                set(active_children()) - others
            ):  # they ignore the SIGTERM by which the pool would end them
                worker.kill()
            raise UsageError(
                "a worker process was killed, perhaps because the machine ran out of memory",
                remedy="run the same command again with fewer --workers; it keeps finished shards",
            ) from None
        finally:
            waits.end()  # otherwise leaving the pool would wait for reads that wait for storage
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _block_stop_signals() -> Iterator[None]:
    """Block the stop signals, so that a process started inside starts with them blocked.

    A worker unblocks them after it has set its own handlers; only its parent responds to these signals.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(parent: int, timeout_s: float, waits: SharedWaits) -> None:
    """Initialize a worker, whose reads wait for storage as those of its parent while results are needed."""
    _die_with_parent(parent)
    set_storage_wait_policy(timeout_s, waits.report)


def _die_with_parent(parent: int) -> None:
    """Make a worker ignore stop signals, and end when its parent ends, even if that is killed by SIGKILL.

    Slurm sends its warning signal to every process of a job. A worker that died of it would end the run
    before the parent has requeued the job.
    """
    import ctypes
    import sys

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # the parent has ended during the start, so the signal would never come
            os._exit(1)


def fingerprint_input(sample: SourceSample) -> str:
    """Return a checksum of a sample's annotations and of the size and modification time of its video.

    Adding or removing a frame of a folder changes the checksum; overwriting one does not. The location of the
    dataset is not included, so the shards of a moved dataset stay valid.
    """
    fields = asdict(sample) | {"video": sample.video.name}
    try:
        status = wait_for_storage(sample.video.stat, sample.video)
        fields |= {
            "size": 0 if os.path.isdir(sample.video) else status.st_size,
            "mtime_ns": status.st_mtime_ns,
        }
    except OSError as error:
        fields |= {"unreadable": error.errno}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
