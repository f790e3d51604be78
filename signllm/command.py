"""The tools that every verb of the command line uses: binding options, printing results, starting ranks.

A verb is a function whose keyword parameters are its options (:mod:`signllm.command_options`). All options
are parsed before a verb runs, so that ``launch`` can reject a wrong option before it submits a job.
"""

import functools
import json as json_format
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from signllm.distributed.local_ranks import is_first_rank, run_local_ranks
from signllm.storage import storage_wait_policy

Job = Callable[[], None]
"""A verb with its options bound, ready to be called without arguments."""


@dataclass(frozen=True)
class Verb:
    """A verb of the command line, such as ``pretrain``.

    Attributes:
        summary: its line in ``signllm --help``.
        example: a complete command line that works.
        prepare: function that parses and checks the arguments after the verb and returns the job to run.
    """

    summary: str
    example: str
    prepare: Callable[[list[str]], Job]


def prepare_job(function: Callable[..., None], arguments: Sequence[str], *, verb: str, about: Verb) -> Job:
    """Parse the arguments of a verb and return the verb with its options bound.

    If an argument is wrong, tyro prints the reason and exits with code 2.

    Args:
        function: implementation of the verb; its parameters define the options.
        arguments: command-line arguments after the verb.
        verb: name of the verb, for the help text.
        about: summary and example, for the help text.

    Raises:
        UsageError: a setting is out of its range or contradicts another one.
    """
    from signllm.command_options import parse_options

    if not is_first_rank() and "--help" in arguments:
        raise SystemExit(0)
    text = f"{about.summary}\n\nExample: {about.example}"
    positional, options = parse_options(function, arguments, program=f"signllm {verb}", description=text)
    return functools.partial(function, *positional, **options)


def get_job_options(job: Job) -> dict[str, Any]:
    """Return the options that :func:`prepare_job` bound to a verb, by parameter name."""
    return dict(job.keywords) if isinstance(job, functools.partial) else {}


def positional(kind: type, name: str) -> Any:
    """Return the annotation of a positional argument whose help text shows ``name``."""
    import tyro

    return Annotated[kind, tyro.conf.arg(metavar=name)]


def print_result(record: dict[str, Any], *, json: bool) -> None:
    """Print a result on standard output as aligned lines, or as JSON for other programs."""
    if json:
        print(json_format.dumps(record, indent=2, default=str))
        return
    flat = dict(_flatten(record))
    width = max(map(len, flat), default=0)
    for key, value in flat.items():
        print(f"{key:<{width}}  {f'{value:.2f}' if isinstance(value, float) else value}")


def _flatten(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dictionaries with their dotted keys."""
    for key, value in record.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def run_on_ranks(
    verb: str,
    arguments: list[str],
    ranks: int,
    job: Job,
    *,
    folder: Path | None = None,
    storage_timeout_s: float | None = None,
) -> None:
    """Run a job in this process, or start the same command line on several ranks of this machine.

    With one rank, or in a process that already is one of several ranks, the job runs here. A termination
    signal does not kill it: the job stops at the next step and saves its state
    (:mod:`signllm.distributed.preemption`); while it waits for storage, it stops at once. A rank that fails
    because another rank is gone names that rank (:mod:`signllm.distributed.failures`).

    Args:
        verb: name of the verb.
        arguments: command-line arguments of the verb.
        ranks: number of processes on this machine.
        job: the work of one rank.
        folder: run folder, which all ranks can write into; None if the verb writes none.
        storage_timeout_s: longest wait for unavailable storage, in seconds; None keeps the default.
    """
    if ranks == 1 or "WORLD_SIZE" in os.environ:
        from signllm.distributed.preemption import preemption_flag, stopped_early_error

        with preemption_flag() as flag:

            def stop_if_requested() -> None:
                if flag.requested:
                    raise stopped_early_error()

            with (
                storage_wait_policy(storage_timeout_s, stop_if_requested),
                _explain_lost_ranks(folder, verb),
            ):
                job()
    else:
        run_local_ranks([verb, *arguments], ranks=ranks)


def _explain_lost_ranks(folder: Path | None, verb: str) -> AbstractContextManager[None]:
    """Return the context in which a failure caused by a lost rank names that rank; none with one rank."""
    if folder is None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return nullcontext()
    from signllm.distributed.failures import fail_together

    return fail_together(folder, int(os.environ["RANK"]), verb, hang_s=None)
