"""Running jobs in background threads before their results are needed, such as decoding next to a model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(jobs: Iterable[Callable[[], T]], *, threads: int, waiting: int) -> Iterator[T]:
    """Yield the results of ``jobs`` in order; threads compute them before they are requested.

    A further thread iterates over ``jobs``, because producing a job can be the expensive part (a recording is
    cut while it is decoded). An exception of a job, or of the iteration, is raised here.

    Args:
        jobs: functions without arguments, each of which is called once.
        threads: number of threads that call them.
        waiting: largest number of results that wait to be taken.
    """
    pending: queue.Queue[Future[T] | BaseException | None] = queue.Queue(waiting)
    stop = threading.Event()

    def put(item: Future[T] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                pending.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def submit_jobs() -> None:
        try:
            for job in jobs:
                if stop.is_set():
                    return
                put(pool.submit(job))
            put(None)
        except BaseException as error:  # the consumer raises it
            put(error)

    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as pool:
        submitting = threading.Thread(target=submit_jobs, daemon=True)
        submitting.start()
        try:
            while (item := pending.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item.result()
        finally:
            stop.set()
            submitting.join()
            pool.shutdown(cancel_futures=True)
