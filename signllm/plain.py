"""Conversion of frozen dataclasses to plain JSON values and back, used for ``config.json``.

The annotation of a field decides how its value is read; the files contain no type tags. Which dataclass of a
union is meant follows from the field names. An unknown name or a wrong type comes from a file that was edited
by hand or written by another version, so it is reported as an error of the user. A class may list settings
that it no longer has in ``REMOVED_SETTINGS``: name, the value that changed nothing, and the last version with
the setting. That value is ignored, and any other one is refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from signllm.errors import UsageError


def to_plain(value: Any) -> Any:
    """Convert dataclasses, paths, enums and tuples to values that ``json`` can write."""
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
    """Build a value of the annotated type ``kind`` from a JSON value.

    Args:
        kind: a dataclass, or any other annotation that a configuration uses.
        value: value as ``json`` or ``tomllib`` returned it.
        where: file that the value comes from, for messages.
        name: dotted name of the value, for messages.

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
        similar = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
        raise _value_error(name, value, f"one of {', '.join(map(str, choices))}", where, similar)
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
    raise _value_error(name, value, getattr(kind, "__name__", str(kind)), where)


def _union_from_plain(choices: tuple[Any, ...], value: Any, *, where: object, name: str) -> Any:
    if value is None and type(None) in choices:
        return None
    if isinstance(value, dict):
        parts = [c for c in choices if dataclasses.is_dataclass(c)]
        matching = parts if len(parts) == 1 else [c for c in parts if set(value) == _field_names(c)]
        if matching:
            return from_plain(matching[0], value, where=where, name=name)
    for choice in choices:
        try:
            return from_plain(choice, value, where=where, name=name)
        except UsageError:
            continue
    raise _value_error(name, value, " or ".join(getattr(c, "__name__", str(c)) for c in choices), where)


def _dataclass_from_plain(kind: Any, value: Any, *, where: object, name: str) -> Any:
    if not isinstance(value, dict):
        raise _value_error(name, value, f"a table of {', '.join(sorted(_field_names(kind)))}", where)
    value = _without_removed_settings(kind, value, where=where, name=name)
    for key in value:
        if key not in _field_names(kind):
            similar = difflib.get_close_matches(key, _field_names(kind), n=1)
            raise UsageError(
                f"there is no setting {f'{name}.{key}'.lstrip('.')!r}",
                where=where,
                remedy=f"did you mean {similar[0]!r}?"
                if similar
                else f"the settings are {', '.join(sorted(_field_names(kind)))}",
            )
    hints = typing.get_type_hints(kind, include_extras=True)
    dotted = {key: f"{name}.{key}".lstrip(".") for key in value}
    fields = {
        key: from_plain(hints[key], inner, where=where, name=dotted[key]) for key, inner in value.items()
    }
    try:
        return kind(**fields)
    except TypeError as error:
        raise UsageError(f"{name or kind.__name__} is incomplete: {error}", where=where) from None


def _without_removed_settings(
    kind: Any, value: dict[str, Any], *, where: object, name: str
) -> dict[str, Any]:
    """Return the values without those of settings that the class no longer has.

    Raises:
        UsageError: a removed setting has a value that this version cannot carry out.
    """
    removed: Mapping[str, tuple[object, str]] = getattr(kind, "REMOVED_SETTINGS", {})
    for key in removed.keys() & value.keys():
        harmless, last_version = removed[key]
        if value[key] != harmless:
            dotted = f"{name}.{key}".lstrip(".")
            raise UsageError(
                f"{dotted} is {value[key]!r}, but this setting was removed after signllm {last_version}",
                where=where,
                remedy=f"use signllm {last_version}, or start again without the setting",
            )
    return {key: inner for key, inner in value.items() if key not in removed}


def _field_names(kind: Any) -> set[str]:
    """Return the names of the fields that the constructor of a dataclass takes."""
    return {item.name for item in dataclasses.fields(kind) if item.init}


def _value_error(
    name: str, value: Any, expected: str, where: object, similar: list[str] | None = None
) -> UsageError:
    """Return the error for a value that is not what its annotation expects."""
    remedy = f"did you mean {similar[0]!r}?" if similar else f"give {expected}"
    return UsageError(f"{name or 'the value'} is {value!r}, not {expected}", where=where, remedy=remedy)
