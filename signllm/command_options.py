"""The options of a verb: tyro parses them, a file of ``--config`` is merged in, and pydantic validates once.

A verb is a function whose keyword parameters are its options, with help texts from its docstring. A parameter
whose type is a validated dataclass becomes one option per setting, such as ``--training.batch-size``. tyro
parses these into plain values only. Settings come from the command line, else from the file, else from the
default of the parameter, and are validated after that, all at once. A file may therefore be incomplete or
contradict a recipe as long as the options mend it, and an error names the option or file it came from.
"""

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from signllm.errors import UsageError

CONFIG_FILE = "config_file"
"""Parameter of the verbs that read a file of settings; its option is ``--config``."""


def parse_options(
    function: Callable[..., Any], arguments: Sequence[str], *, program: str, description: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Parse the arguments of a verb and return the positional and keyword arguments for its function.

    If an option does not exist or its text is not of its type, tyro prints the reason and exits with code 2.

    Args:
        function: the verb; its parameters define the options.
        arguments: command-line arguments after the verb.
        program: name of the command, for the help text.
        description: text at the top of the help text.

    Raises:
        UsageError: a value is out of its range, values contradict each other, or the file of settings is
            wrong.
    """
    import tyro

    # tyro wraps the descriptions of options itself, but keeps the line breaks of a function's docstring.
    function.__doc__ = plain_text(re.sub(r"\n {8}(?=\S)", " ", inspect.getdoc(function) or ""))

    def collect(*positional: Any, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return positional, options

    collect.__doc__, collect.__signature__ = function.__doc__, inspect.signature(function)  # type: ignore[attr-defined]
    collect.__annotations__ = function.__annotations__
    positional, options = tyro.cli(
        collect, args=arguments, prog=program, description=description, registry=_constructor_registry()
    )
    names = _option_names(arguments)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, is_prefixed = _settings_type(parameter.annotation)
        if kind is not None:
            prefix = f"{name}." if is_prefixed else ""
            file = options.get(CONFIG_FILE) if name == "config" else None
            options[name] = _build_settings(kind, parameter.default, options[name], file, names, prefix)
    return positional, options


def _settings_type(annotation: Any) -> tuple[Any, bool]:
    """Return the validated dataclass of a parameter, or None, and whether its options have its name."""
    from signllm.validation import is_validated

    is_annotated = typing.get_origin(annotation) is Annotated  # with tyro.conf.arg(name="")
    kind = typing.get_args(annotation)[0] if is_annotated else annotation
    return (kind if is_validated(kind) else None), not is_annotated


def _build_settings(
    kind: Any, default: Any, parsed: Mapping[str, Any], file: Path | None, options: set[str], prefix: str
) -> Any:
    """Return validated settings: those of the command line, else of the file, else the defaults.

    Args:
        kind: the dataclass.
        default: its settings without a file and options.
        parsed: all values as tyro returned them, with the defaults of those that are not on the command line.
        file: file of settings, or None.
        options: names of the options on the command line.
        prefix: text before the name of a setting in the name of its option.
    """
    from signllm.validation import from_plain, to_plain

    values = to_plain(default) if file is None else _merge_config_file(file, default)
    from_options = set()
    for path, value in _leaves(parsed):
        setting = ".".join(path)
        if option_name(prefix + setting) in options:
            from_options.add(setting)
            _set_value(values, path, to_plain(value))

    def locate(setting: str) -> object:
        for name in from_options:
            if f"{setting}.".startswith(f"{name}."):
                return option_name(prefix + name)
        return option_name(prefix + setting) if file is None else file

    return from_plain(kind, values, where=locate)


def _leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the values that tyro parsed, with the names that lead to each."""
    for name, value in values.items():
        if isinstance(value, _Settings):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _merge_config_file(file: Path, default: Any) -> Any:
    from signllm.config import merge_config_file

    return merge_config_file(file, default)


def _set_value(values: Any, path: Sequence[str], value: Any) -> None:
    """Set a setting in nested tables; a table that the file replaced by another value is left as it is."""
    for part in path[:-1]:
        values = values.get(part) if isinstance(values, dict) else None
    if isinstance(values, dict):
        values[path[-1]] = value


def option_name(setting: str) -> str:
    """Return the option of a setting: ``--training.batch-size`` for ``training.batch_size``."""
    return "--" + setting.replace("_", "-")


def _option_names(arguments: Sequence[str]) -> set[str]:
    """Return the names of the options among the arguments; ``--a.no-b`` is named ``--a.b`` as well."""
    names = {word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")}
    return names | {re.sub(r"^(--(?:.*\.)?)no-(?=[^.]*$)", r"\1", name) for name in names}


class _Settings(dict[str, Any]):
    """Values of a dataclass that are not validated yet."""


def plain_text(text: str) -> str:
    """Return the text of a docstring without its markup: double backticks and roles such as ``:class:``."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"\1", text)
    return re.sub(r"``([^`]+)``", r"\1", text)


def _constructor_registry() -> Any:
    """Return the rules by which tyro parses types that it would otherwise parse differently.

    A validated dataclass becomes a dictionary, because it is validated later. An optional dataclass
    (``LoraConfig | None``) is given as JSON or ``none``; tyro would make subcommands of it. A dictionary of
    strings (``environment``) is given as NAME=VALUE pairs.
    """
    from tyro.constructors import (
        MISSING,
        ConstructorRegistry,
        PrimitiveConstructorSpec,
        PrimitiveTypeInfo,
        StructConstructorSpec,
        StructFieldSpec,
        StructTypeInfo,
    )

    from signllm.validation import is_validated, to_plain

    registry = ConstructorRegistry()

    @registry.struct_rule
    def settings(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not is_validated(info.type):
            return None
        hints, texts = typing.get_type_hints(info.type, include_extras=True), describe_fields(info.type)
        fields = tuple(
            StructFieldSpec(
                name=item.name,
                type=hints[item.name],
                default=getattr(info.default, item.name, MISSING),
                helptext=texts.get(item.name),
            )
            for item in dataclasses.fields(typing.cast(Any, info.type))
        )
        return StructConstructorSpec(instantiate=_Settings, fields=fields)

    @registry.primitive_rule
    def optional_dataclass(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kinds = typing.get_args(info.type)
        if type(None) not in kinds or not any(is_validated(k) or typing.get_origin(k) is dict for k in kinds):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="JSON|none",
            instance_from_str=_parse_json,
            is_instance=lambda value: value is None or isinstance(value, dict) or is_validated(type(value)),
            str_from_instance=lambda value: ["none" if value is None else json.dumps(to_plain(value))],
        )

    @registry.primitive_rule
    def string_dictionary(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != dict[str, str]:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[NAME=VALUE ...]",
            instance_from_str=_parse_pairs,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [f"{name}={text}" for name, text in value.items()],
        )

    return registry


def describe_fields(kind: type) -> dict[str, str]:
    """Return the description of each field of a dataclass, from its docstring and those of its bases."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = re.search(r"^(?:Attributes|Args):\n(.*)", inspect.cleandoc(base.__doc__ or ""), re.M | re.S)
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.M):
            texts[name] = plain_text(" ".join(text.split()))
    return texts


def _parse_pairs(texts: list[str]) -> dict[str, str]:
    """Return the dictionary that ``NAME=VALUE`` arguments describe."""
    for text in texts:
        if not text.partition("=")[0].strip() or "=" not in text:
            raise UsageError(f"{text!r} is not NAME=VALUE", remedy="write for example OMP_NUM_THREADS=8")
    return {text.partition("=")[0]: text.partition("=")[2] for text in texts}


def _parse_json(texts: list[str]) -> Any:
    """Return the value of one JSON argument; ``none`` gives None."""
    try:
        return None if texts[0].lower() == "none" else json.loads(texts[0])
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{texts[0][:200]!r} is not JSON: {error}", remedy="write for example '{\"rank\": 8}', or none"
        ) from None
