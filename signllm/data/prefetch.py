"""Work that runs ahead of whoever needs it, in threads: decoding beside a model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(jobs: Iterable[Callable[[], T]], *, threads: int, waiting: int) -> Iterator[T]:
    """Yield what ``jobs`` return, in their order.

    One more thread draws the jobs, which may itself be the work (a recording that is cut while it is
    decoded). What a job raises is raised here.

    Args:
        jobs: to be called once each.
        threads: that call them.
        waiting: results that may wait to be taken.
    """
    line: queue.Queue[Future[T] | BaseException | None] = queue.Queue(waiting)
    ended = threading.Event()

    def put(one: Future[T] | BaseException | None) -> None:
        while not ended.is_set():
            try:
                line.put(one, timeout=0.1)
                return
            except queue.Full:
                continue

    def draw() -> None:
        try:
            for job in jobs:
                if ended.is_set():
                    return
                put(pool.submit(job))
            put(None)
        except BaseException as error:  # whoever takes the results raises it
            put(error)

    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        drawing = threading.Thread(target=draw, daemon=True)
        drawing.start()
        try:
            while (one := line.get()) is not None:
                if isinstance(one, BaseException):
                    raise one
                yield one.result()
        finally:
            ended.set()
            drawing.join()
            pool.shutdown(cancel_futures=True)
