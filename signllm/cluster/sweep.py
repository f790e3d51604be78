"""A sweep: one command line with placeholders becomes one job for each combination of their values.

``--array seed=0..2 codes=128,256`` makes six jobs; ``{seed}`` and ``{codes}`` in the command line are
replaced by their values, and ``{i}`` by the job's number from 0. ``--array 3`` makes three jobs that differ
by ``{i}``. Values are separated by commas; ``A..B`` is a range of integers that includes both ends. An
argument that consists of one placeholder is split like a shell line, so that a value may be several options,
or none: ``--array 'variant=,--a.b 1 --no-c'``. Only what the shell itself would split needs quotes. In
``--run`` or ``--out`` the slashes of a value, for example of a model's name, are replaced: ``--run
runs/{llm}`` with ``llm=google/flan-t5-xl`` is ``runs/google-flan-t5-xl``.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Sequence

from signllm.errors import UsageError

NUMBER = "i"
WRITES_INTO = {"pretrain": "--run", "compose": "--run", "finetune": "--run", "demo": "--out"}
"""Verbs that write a folder of their own, and the option that names it."""
FOLDERS = ("--run", "--out")
"""Options that name a run's folder."""
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.-]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def sweep(array: Sequence[str], arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the command lines of the jobs; the values of the last variable change fastest.

    Args:
        array: values of ``--array``: one number, or several ``NAME=VALUES``.
        arguments: command line with placeholders.

    Raises:
        UsageError: a value or a placeholder is wrong, or two jobs are equal or write the same folder.
    """
    variables = _variables(array)
    used = {name for word in arguments for name in _PLACEHOLDER.findall(word)}
    if unknown := used - {*variables, NUMBER}:
        name = min(unknown)
        raise UsageError(
            f"{{{name}}} has no values",
            where="the command line",
            remedy=f"give them: --array {' '.join(array)} {name}=...",
        )
    if unused := variables.keys() - used - {NUMBER}:
        name = min(unused)
        raise UsageError(
            f"--array gives values of {name}, but the command line has no {{{name}}}",
            where="--array",
            remedy=f"write {{{name}}} where its value goes",
        )
    commands = []
    for number, values in enumerate(itertools.product(*variables.values())):
        chosen = {**dict(zip(variables, values, strict=True)), NUMBER: str(number)}
        pairs = zip(("", *arguments), arguments, strict=False)
        commands.append(tuple(itertools.chain.from_iterable(_filled(*pair, chosen) for pair in pairs)))
    _refuse_conflicts(commands)
    return commands


def _variables(array: Sequence[str]) -> dict[str, list[str]]:
    if len(array) == 1 and re.fullmatch(r"-?\d+", array[0]):
        if int(array[0]) < 1:
            raise UsageError(
                f"an array cannot have {array[0]} jobs", where="--array", remedy="give 1 or more"
            )
        return {NUMBER: [str(number) for number in range(int(array[0]))]}
    variables: dict[str, list[str]] = {}
    for word in array:
        name, equals, values = word.partition("=")
        if not equals or not _PLACEHOLDER.fullmatch(f"{{{name}}}") or name in (*variables, NUMBER):
            raise UsageError(
                f"{word!r} is not a variable with values",
                where="--array",
                remedy="give a number of jobs, or NAME=VALUES once each: --array seed=0..2 codes=128,256",
            )
        variables[name] = values_of(values)
    return variables


def values_of(text: str) -> list[str]:
    """Return the values of a list ``a,b,c``, in which ``A..B`` is a range that includes both ends.

    Raises:
        UsageError: a range is empty.
    """
    return [value for part in text.split(",") for value in _values(part)]


def _values(part: str) -> list[str]:
    ends = _RANGE.fullmatch(part)
    if ends is None:
        return [part]
    first, last = int(ends[1]), int(ends[2])
    if first > last:
        raise UsageError(f"the range {part} is empty", where="--array", remedy=f"write {last}..{first}")
    return [str(number) for number in range(first, last + 1)]


def _filled(before: str, word: str, chosen: dict[str, str]) -> list[str]:
    """Replace the placeholders of an argument; a single placeholder may become several arguments, or none.

    Args:
        before: the argument before, which may be the option that this one is a value of.
        word: the argument.
        chosen: the values of one job.
    """
    alone = _PLACEHOLDER.fullmatch(word)
    if alone:
        try:
            return shlex.split(chosen[alone[1]])
        except ValueError as error:
            raise UsageError(
                f"{alone[1]}={chosen[alone[1]]!r} cannot be split into options: {error}", where="--array"
            ) from None
    option, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
    if option in FOLDERS and not _PLACEHOLDER.fullmatch(value):
        chosen = {name: text.strip("/").replace("/", "-") for name, text in chosen.items()}
    return [_PLACEHOLDER.sub(lambda match: chosen[match[1]], word)]


def _refuse_conflicts(commands: Sequence[tuple[str, ...]]) -> None:
    """Raise if two jobs would do the same, or write the same folder."""
    seen: dict[object, int] = {}
    for number, words in enumerate(commands):
        folder = owned_folder(words)
        for mark, what in ((words, "have the same command line"), (folder, f"share the folder {folder}")):
            if mark is not None and mark in seen:
                raise UsageError(
                    f"jobs {seen[mark]} and {number} of the sweep {what}",
                    where="--array",
                    remedy=f"write a placeholder, or {{{NUMBER}}}, the job's number, into the folder's name",
                )
            if mark is not None:
                seen[mark] = number


def owned_folder(words: Sequence[str]) -> str | None:
    """Return the absolute folder that a command line writes as its own; None if there is none."""
    option = WRITES_INTO.get(words[0]) if words else None
    folder = option and option_value(words, option)
    return os.path.abspath(folder) if folder else None


def option_value(words: Sequence[str], option: str) -> str | None:
    """Return the value of an option in a command line, written ``--a b`` or ``--a=b``; None without it."""
    for word, following in itertools.zip_longest(words, words[1:]):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
