"""Frozen dataclasses to plain JSON values and back, by their annotations: how ``config.json`` is read.

No registry and no tags: the annotation says what a value must be. A union of dataclasses is told apart by its
    field names.
A wrong name or type is the user's mistake (a file edited by hand, another version) and says so.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import types
import typing
from pathlib import Path
from typing import Any

from signllm.errors import UsageError


def to_plain(value: Any) -> Any:
    """Turn dataclasses, paths, enums and tuples into what ``json`` writes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value) if item.init
        }
    if isinstance(value, dict):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: Any, value: Any, *, where: object, name: str = "") -> Any:
    """Build a value of the annotated type ``kind`` from JSON.

    Args:
        kind: a dataclass or any annotation a configuration uses.
        value: what ``json`` or ``tomllib`` read.
        where: the file, for messages.
        name: the dotted name so far, for messages.

    Raises:
        UsageError: an unknown name, a missing one, or a value of the wrong type.
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_plain(kind, value, where=where, name=name)
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union_from_plain(choices, value, where=where, name=name)
    if origin is typing.Annotated:
        return from_plain(choices[0], value, where=where, name=name)
    if origin is typing.Literal:
        if value in choices:
            return value
        near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
        raise _wrong(name, value, f"one of {', '.join(map(str, choices))}", where, near)
    if origin in (tuple, list) and isinstance(value, list):
        kinds = [choices[0]] * len(value) if origin is list or choices[-1] is Ellipsis else choices
        if len(kinds) == len(value):
            items = [from_plain(k, v, where=where, name=name) for k, v in zip(kinds, value, strict=True)]
            return items if origin is list else tuple(items)
    if origin is dict and isinstance(value, dict):
        return {
            key: from_plain(choices[1], inner, where=where, name=f"{name}.{key}")
            for key, inner in value.items()
        }
    return _scalar_from_plain(kind, value, where=where, name=name)


def _scalar_from_plain(kind: Any, value: Any, *, where: object, name: str) -> Any:
    if kind is Any:
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if kind in (None, type(None)) and value is None:
        return None
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise _wrong(name, value, getattr(kind, "__name__", str(kind)), where)


def _union_from_plain(choices: tuple[Any, ...], value: Any, *, where: object, name: str) -> Any:
    if value is None and type(None) in choices:
        return None
    if isinstance(value, dict):
        parts = [c for c in choices if dataclasses.is_dataclass(c)]
        named = parts if len(parts) == 1 else [c for c in parts if set(value) == _settable(c)]
        if named:
            return from_plain(named[0], value, where=where, name=name)
    for choice in choices:
        try:
            return from_plain(choice, value, where=where, name=name)
        except UsageError:
            continue
    raise _wrong(name, value, " or ".join(getattr(c, "__name__", str(c)) for c in choices), where)


def _dataclass_from_plain(kind: Any, value: Any, *, where: object, name: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(name, value, f"a table of {', '.join(sorted(_settable(kind)))}", where)
    for key in value:
        if key not in _settable(kind):
            near = difflib.get_close_matches(key, _settable(kind), n=1)
            raise UsageError(
                f"there is no setting {f'{name}.{key}'.lstrip('.')!r}",
                where=where,
                remedy=f"did you mean {near[0]!r}?"
                if near
                else f"there are {', '.join(sorted(_settable(kind)))}",
            )
    hints = typing.get_type_hints(kind, include_extras=True)
    dotted = {key: f"{name}.{key}".lstrip(".") for key in value}
    given = {
        key: from_plain(hints[key], inner, where=where, name=dotted[key]) for key, inner in value.items()
    }
    try:
        return kind(**given)
    except TypeError as error:
        raise UsageError(f"{name or kind.__name__} is not whole: {error}", where=where) from None


def _settable(kind: Any) -> set[str]:
    return {item.name for item in dataclasses.fields(kind) if item.init}


def _wrong(name: str, value: Any, wanted: str, where: object, near: list[str] | None = None) -> UsageError:
    remedy = f"did you mean {near[0]!r}?" if near else f"give {wanted}"
    return UsageError(f"{name or 'the value'} is {value!r}, not {wanted}", where=where, remedy=remedy)
