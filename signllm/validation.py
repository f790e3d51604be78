"""Validated dataclasses: declared types and ranges, checked by pydantic and reported in our own words.

A class with the decorator :func:`validated` is a frozen pydantic dataclass. Its annotations declare the types
and ranges (``steps: PositiveInt = 3``), and ``__post_init__`` contains only the rules between several fields.
Nothing is converted silently: "3", 1.5 and true are not integers. The first problem becomes one
:class:`UsageError` with the name of the setting, its value, the limit and the remedy. It names the option of
the command line, or the file and the key in it, from which the value came.

``to_plain`` and ``from_plain`` convert such objects to values that ``json`` can write, and back. Files
contain no type tags: the annotation of a field decides how its value is read. A class may list settings that
it no longer has in ``REMOVED_SETTINGS``: name, the value that changed nothing, and the last version with the
setting. That value is ignored, and any other one is refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import to_jsonable_python

from signllm.errors import UsageError

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Limit = Annotated[float, Field(ge=0)]
"""A limit of 0 or more; infinity is no limit."""
Fraction = Annotated[float, Field(ge=0, le=1)]
"""A share from 0 to 1."""
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]

T = TypeVar("T")
UNKNOWN_NAME = "unexpected_keyword_argument"
RANGE_PROBLEMS = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")
Details = Mapping[str, Any]
"""One error of pydantic: its type, the location of the value, the value, and the limit (``ctx``)."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def validated(cls: type[T]) -> type[T]:
    """Make a class a frozen pydantic dataclass whose constructor raises :class:`UsageError`."""
    config = ConfigDict(extra="forbid", strict=True)
    made: Any = pydantic_dataclass(cls, frozen=True, kw_only=True, config=config)
    construct = made.__init__

    @functools.wraps(construct)
    def construct_or_explain(self: Any, *positional: Any, **fields: Any) -> None:
        try:
            construct(self, *positional, **fields)
        except ValidationError as error:
            raise usage_error(error, made) from None

    made.__init__ = construct_or_explain
    return typing.cast(type[T], made)


def is_validated(kind: Any) -> bool:
    """Return whether a type is a class with the decorator :func:`validated`."""
    return isinstance(kind, type) and hasattr(kind, "__pydantic_validator__")


def to_plain(value: Any) -> Any:
    """Convert dataclasses, paths, enums and tuples to values that ``json`` can write."""
    return to_jsonable_python(value)


def from_plain(kind: type[T], value: Any, *, where: object, name: str = "") -> T:
    """Build a value of the annotated type ``kind`` from a JSON value.

    Args:
        kind: a dataclass, or any other annotation that a configuration uses.
        value: value as ``json`` or ``tomllib`` returned it.
        where: file that the value comes from, for messages, or a function (:data:`Locate`).
        name: dotted name of the value, for messages.

    Raises:
        UsageError: an unknown name, a missing one, or a value of the wrong type or out of its range.
    """
    value = without_removed_settings(kind, value, where=where, name=name)
    try:
        # In JSON a list is a valid tuple and a text a valid path, although the types are strict.
        read: T = _type_adapter(typing.cast(Hashable, kind)).validate_json(
            json.dumps(value, default=str), strict=True
        )
        return read
    except ValidationError as error:
        raise usage_error(error, kind, where=where, name=name) from None


@functools.cache
def _type_adapter(kind: Any) -> TypeAdapter[Any]:
    """Return pydantic's validator of a type."""
    return TypeAdapter(kind)


def without_removed_settings(kind: Any, value: Any, *, where: object, name: str = "") -> Any:
    """Return the values without those of settings that the class no longer has, on all levels.

    Raises:
        UsageError: a removed setting has a value that this version cannot carry out.
    """
    kind = _strip(kind)
    if not dataclasses.is_dataclass(kind) or not isinstance(value, dict):
        return value
    removed: Mapping[str, tuple[object, str]] = getattr(kind, "REMOVED_SETTINGS", {})
    hints = _type_hints(typing.cast(Hashable, kind))
    kept = {}
    for key, inner in value.items():
        dotted = f"{name}.{key}".lstrip(".")
        if key not in removed:
            kept[key] = without_removed_settings(hints.get(key), inner, where=where, name=dotted)
        elif inner != removed[key][0]:
            last_version = removed[key][1]
            raise UsageError(
                f"{dotted} is {inner!r}, but this setting was removed after signllm {last_version}",
                where=where(dotted) if callable(where) else where,
                remedy=f"use signllm {last_version}, or start again without the setting",
            )
    return kept


Locate = Callable[[str], object]
"""Function that returns where the value of a setting came from, by the setting's dotted name."""


def usage_error(error: ValidationError, kind: Any, *, where: object = None, name: str = "") -> UsageError:
    """Return the first problem that pydantic reports as an error of the user.

    Args:
        error: pydantic's error.
        kind: type that was validated.
        where: file that the value came from, or a function from the dotted name of the setting to the file or
            option; None names the field of the class.
        name: dotted name of the validated value.
    """
    every = [(details, _Place.find(kind, details["loc"])) for details in error.errors(include_url=False)]
    # A misspelt name is reported before the setting that is missing because of it.
    details, place = min(every, key=lambda pair: pair[0]["type"] != UNKNOWN_NAME)
    if place.union is not None:  # pydantic reports the errors of each member of a union
        inside = [(d, p) for d, p in every if p.union == place.union and len(d["loc"]) > p.union_depth + 1]
        details, place = inside[0] if inside else (details, dataclasses.replace(place, kind=place.union))
    dotted = ".".join([*([name] if name else []), *place.names])
    what, remedy, setting = _describe(details, place, dotted)
    source = where(setting) if callable(where) else where
    if where is None:
        source = f"{kind.__name__}.{setting}".rstrip(".")
    elif setting and setting not in what and not str(source).startswith("--"):
        what = f"{setting}: {what}"
    return UsageError(what, where=source, remedy=remedy)


@dataclasses.dataclass(frozen=True)
class _Place:
    """The place of a value inside a validated one.

    Attributes:
        names: names of fields, keys and indices that lead to it.
        kind: its annotation.
        owner: dataclass, tuple, list or dictionary that contains it.
        union: annotation of the first union on the way to it, or None.
        union_depth: number of location elements before the name of the union's member.
    """

    names: tuple[str, ...]
    kind: Any
    owner: Any
    union: Any = None
    union_depth: int = 0

    @classmethod
    def find(cls, kind: Any, location: Sequence[str | int]) -> _Place:
        """Follow the location of an error from a type to the type of the value."""
        names: list[str] = []
        owner, union, union_depth = None, None, 0
        for depth, element in enumerate(location):
            stripped = _strip(kind)
            origin, arguments = typing.get_origin(stripped), typing.get_args(stripped)
            if origin in (typing.Union, types.UnionType):
                if union is None:
                    union, union_depth = stripped, depth
                kind = next((k for k in arguments if getattr(k, "__name__", "") == element), Any)
                continue
            names.append(str(element))
            owner = stripped
            if dataclasses.is_dataclass(stripped):
                kind = _type_hints(typing.cast(Hashable, stripped)).get(str(element), Any)
            elif origin in (tuple, list, dict) and arguments:
                is_fixed = origin is tuple and arguments[-1] is not Ellipsis
                index = element if is_fixed and isinstance(element, int) else 0
                kind = arguments[-1 if origin is dict else min(index, len(arguments) - 1)]
            else:
                kind = Any
        return cls(tuple(names), kind, owner, union, union_depth)


def _describe(details: Details, place: _Place, dotted: str) -> tuple[str, str, str]:
    """Return what is wrong, the remedy, and the dotted name of the setting that the error is about."""
    problem, value, limits = details["type"], details["input"], details.get("ctx", {})
    if isinstance(limits.get("error"), UsageError):  # a rule of __post_init__
        rule: UsageError = limits["error"]
        setting = ".".join(part for part in (dotted, str(rule.where or "")) if part)
        return rule.what, rule.remedy or "", setting
    if problem == UNKNOWN_NAME:
        what, remedy = _describe_unknown_name(place, dotted)
    elif problem.startswith("missing"):
        what, remedy = _describe_missing_value(place, dotted)
    else:
        expected, remedy = _describe_expected(details, place)
        what = f"{dotted or 'the value'} is {_shorten(value)}{expected}"
    return what, remedy, dotted


def _describe_unknown_name(place: _Place, dotted: str) -> tuple[str, str]:
    names = sorted(item.name for item in dataclasses.fields(place.owner) if item.init)
    similar = difflib.get_close_matches(place.names[-1], names, n=1)
    remedy = f"did you mean {similar[0]!r}?" if similar else f"the settings are {', '.join(names)}"
    return f"there is no setting {dotted!r}", remedy


def _describe_missing_value(place: _Place, dotted: str) -> tuple[str, str]:
    owner, name = dotted.rpartition(".")[0], place.names[-1]
    if name.isdecimal():  # of a tuple of fixed length
        return f"{owner} has only {name} values", f"give {_describe_type(place.owner)}"
    return f"{owner or place.owner.__name__} is incomplete: {name} is missing", f"give {dotted}"


def _describe_expected(details: Details, place: _Place) -> tuple[str, str]:
    """Return how a message about a value goes on, and the remedy."""
    problem, optional = details["type"], ", or leave it out" if _is_optional(place.kind) else ""
    if problem == "literal_error":
        choices = [str(choice) for choice in typing.get_args(_strip(place.kind))]
        similar = difflib.get_close_matches(str(details["input"]), choices, n=1)
        listed = " or ".join([*([", ".join(choices[:-1])] if choices[1:] else []), choices[-1]])
        return f", not {listed}", f"did you mean {similar[0]!r}?" if similar else f"give {listed}{optional}"
    if problem == "finite_number":
        return "; it must be a finite number", f"give a finite number{optional}"
    if problem in RANGE_PROBLEMS:
        allowed, remedy = _describe_range(place.kind)
        return f"; it must be {allowed}", f"give {remedy}{optional}"
    if problem.endswith("_type") or problem == "is_instance_of" or place.union is not None:
        expected = _describe_type(place.kind)
        return f", not {expected}", f"give {expected}{optional}"
    return f": {details['msg']}", "correct the value"


def _describe_range(kind: Any) -> tuple[str, str]:
    """Return the declared range of a type in words, for a message and for its remedy."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds: dict[str, Any] = {}
    for annotated in (kind, *typing.get_args(kind)):
        for marker in _flatten_metadata(getattr(annotated, "__metadata__", ())):
            bounds |= {name: getattr(marker, name) for name in words if hasattr(marker, name)}
    allowed = " and ".join(f"{words[name]} {bound}" for name, bound in bounds.items())
    if bounds.keys() == {"ge", "le"}:
        return allowed, f"{bounds['ge']} to {bounds['le']}"
    words = {"ge": "{} or more", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
    return allowed, " and ".join(words[name].format(bound) for name, bound in bounds.items())


def _flatten_metadata(markers: Iterable[Any]) -> list[Any]:
    """Return the markers of an annotation; pydantic's ``Field`` contains a list of them."""
    return [inner for marker in markers for inner in (marker, *getattr(marker, "metadata", ()))]


def _describe_type(kind: Any) -> str:
    """Return a type in words."""
    kind = _strip(kind)
    if dataclasses.is_dataclass(kind):
        return f"a table of {', '.join(sorted(item.name for item in dataclasses.fields(kind) if item.init))}"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(getattr(_strip(k), "__name__", str(k)) for k in typing.get_args(kind))
    return str(kind) if typing.get_origin(kind) is not None else getattr(kind, "__name__", str(kind))


def _shorten(value: Any) -> str:
    """Return the text of a value in at most 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


@functools.cache
def _type_hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _is_optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def _strip(kind: Any) -> Any:
    """Return an annotation without ``Annotated`` and without ``| None``."""
    while True:
        if typing.get_origin(kind) is Annotated:
            kind = typing.get_args(kind)[0]
        elif typing.get_origin(kind) in (typing.Union, types.UnionType):
            choices = [choice for choice in typing.get_args(kind) if choice is not type(None)]
            if len(choices) != 1:
                return kind if len(choices) == len(typing.get_args(kind)) else typing.Union[tuple(choices)]  # noqa: UP007
            kind = choices[0]
        else:
            return kind
