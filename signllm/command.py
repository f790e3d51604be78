"""What every verb is made with: options parsed by tyro from a function, results shown, ranks started.

A verb is a function whose keyword parameters are its options; their help texts come from its docstring. It is
parsed completely before it runs, so that ``launch`` can refuse a wrong option before anything is submitted.
"""

import functools
import json as json_format
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any

from signllm.errors import UsageError
from signllm.plain import from_plain, to_plain
from signllm.storage import patience
from signllm.training.local_ranks import StoppedEarlyError, is_first_rank, run_local_ranks

Job = Callable[[], None]
"""A verb with its options filled in, ready to run."""


@dataclass(frozen=True)
class Verb:
    """One word of the command line.

    Attributes:
        summary: its line in ``signllm --help``.
        example: a line that works.
        prepare: takes the arguments after the verb, checks them, returns what runs.
    """

    summary: str
    example: str
    prepare: Callable[[list[str]], Job]


def parse(function: Callable[..., None], arguments: Sequence[str], *, verb: str, about: Verb) -> Job:
    """Return a verb ready to run, its options filled from ``arguments``; tyro says what is wrong, exits 2."""
    import tyro

    @functools.wraps(function)
    def fill(*given: Any, **named: Any) -> Job:
        return functools.partial(function, *given, **named)

    text = f"{about.summary}\n\nExample: {about.example}"
    if not is_first_rank() and "--help" in arguments:
        raise SystemExit(0)
    job: Job = tyro.cli(
        fill,
        args=arguments,
        prog=f"signllm {verb}",
        description=text,
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=_optional_parts(),
    )
    return job


def options_of(job: Job) -> dict[str, Any]:
    """Return the options that :func:`parse` has filled into a verb, by the names of its function."""
    return dict(job.keywords) if isinstance(job, functools.partial) else {}


def _optional_parts() -> Any:
    """Let a part that may be absent (``LoraConfig | None``) be given as JSON or ``none``: no subcommands.

    A table of texts (``environment``) is given as NAME=VALUE.
    """
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def optional_part(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kinds = typing.get_args(info.type)
        if type(None) not in kinds or not any(is_dataclass(k) or typing.get_origin(k) is dict for k in kinds):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="JSON|none",
            instance_from_str=functools.partial(_part_from_text, info.type),
            is_instance=lambda value: value is None or isinstance(value, dict) or is_dataclass(value),
            str_from_instance=lambda value: ["none" if value is None else json_format.dumps(to_plain(value))],
        )

    @registry.primitive_rule
    def pairs(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != dict[str, str]:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[NAME=VALUE ...]",
            instance_from_str=_pairs_from_text,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [f"{name}={text}" for name, text in value.items()],
        )

    return registry


def _pairs_from_text(texts: list[str]) -> dict[str, str]:
    for text in texts:
        if not text.partition("=")[0].strip() or "=" not in text:
            raise UsageError(f"{text!r} is not NAME=VALUE", remedy="for example OMP_NUM_THREADS=8")
    return {text.partition("=")[0]: text.partition("=")[2] for text in texts}


def _part_from_text(kind: Any, texts: list[str]) -> Any:
    try:
        value = None if texts[0].lower() == "none" else json_format.loads(texts[0])
    except ValueError as error:
        raise UsageError(
            f"{texts[0]!r} is not JSON: {error}", remedy="for example '{\"rank\": 8}', or none"
        ) from None
    return from_plain(kind, value, where="the command line")


def named(kind: type, name: str) -> Any:
    """Annotate a positional argument with the name that the help text shows."""
    import tyro

    return Annotated[kind, tyro.conf.arg(metavar=name)]


def show(record: dict[str, Any], *, json: bool) -> None:
    """Print a result on standard output: aligned lines, or JSON for programs."""
    if json:
        print(json_format.dumps(record, indent=2, default=str))
        return
    flat = dict(_flattened(record))
    width = max(map(len, flat), default=0)
    for key, value in flat.items():
        print(f"{key:<{width}}  {f'{value:.2f}' if isinstance(value, float) else value}")


def _flattened(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, dict) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def spread(
    verb: str,
    arguments: list[str],
    ranks: int,
    alone: Job,
    *,
    folder: Path | None = None,
    storage_timeout_s: float | None = None,
) -> None:
    """Run ``alone`` here, or the same command line on ``ranks`` ranks, unless this already is one of them.

    A signal does not end it but asks it to leave, from start-up to the last file
    (:mod:`signllm.training.preemption`); while it waits for storage, it leaves at once. A rank whose work
    fails because another rank is gone names that one (:mod:`signllm.training.failures`).

    Args:
        verb: name of the verb.
        arguments: its arguments on the command line.
        ranks: number of processes on this machine.
        alone: what one rank does.
        folder: a folder that all ranks see and may write into, the run's; None if the verb writes none.
        storage_timeout_s: seconds that it waits for storage; None waits as long as by default.
    """
    if ranks == 1 or "WORLD_SIZE" in os.environ:
        from signllm.training.preemption import asked_to_leave, stopped_early

        with asked_to_leave() as flag:

            def leave_if_asked() -> None:
                if flag.requested:
                    raise stopped_early()

            with patience(storage_timeout_s, leave_if_asked), _explaining_lost_ranks(folder, verb):
                alone()
    else:
        run_local_ranks([verb, *arguments], ranks=ranks)


def _explaining_lost_ranks(folder: Path | None, verb: str) -> AbstractContextManager[None]:
    if folder is None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return nullcontext()
    from signllm.training.failures import failing_together

    return failing_together(folder, int(os.environ["RANK"]), verb, hang_s=None)


def whole(outcome: Any) -> None:
    """Pass a training outcome that reached its end.

    Raises:
        StoppedEarlyError: the machine asked for an end first.
    """
    if outcome is not None and outcome.preempted:
        raise StoppedEarlyError(f"asked to stop: saved after step {outcome.step}; the same command continues")
