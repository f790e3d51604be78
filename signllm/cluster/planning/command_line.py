"""The command line of a planned run, with an option for each setting that differs from the recipe."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from signllm.cluster.planning.roofline import Machine
from signllm.config import FinetuneConfig
from signllm.validation import to_plain

WIDTH = 110


def launch_arguments(
    recipe: str,
    *,
    default: FinetuneConfig,
    chosen: FinetuneConfig,
    machine: Machine,
    llm: str,
    init: str,
    data: str,
    run: str,
) -> list[str]:
    """Return the arguments of ``signllm`` that launch a run.

    Args:
        recipe: name of the recipe.
        default: the recipe's configuration of stage 3.
        chosen: configuration of the run; its encoder and the path of its language model are ignored.
        machine: nodes and GPUs.
        llm: the language model as the user named it.
        init: run folder of stages 1 and 2.
        data: folder or address of the shards.
        run: folder of the new run.
    """
    resources = ["--nodes", str(machine.nodes), "--gpus", str(machine.gpus)]
    paths = ["--init", init, "--data", data, "--run", run, "--llm", llm]
    options = list(_options(default, _comparable(chosen, default)))
    return ["launch", machine.gpu.profile, *resources, "--", "finetune", recipe, *paths, *options]


def _comparable(chosen: FinetuneConfig, default: FinetuneConfig) -> FinetuneConfig:
    of_default = default.sign_llm.language_model
    model = replace(chosen.sign_llm.language_model, path=of_default.path)
    sign_llm = replace(chosen.sign_llm, vq_sign=default.sign_llm.vq_sign, language_model=model)
    return replace(chosen, sign_llm=sign_llm)


def _options(before: Any, after: Any, prefix: str = "") -> Iterator[str]:
    for item in dataclasses.fields(before):
        old, new = getattr(before, item.name), getattr(after, item.name)
        name = item.name.replace("_", "-")
        if dataclasses.is_dataclass(old) and type(old) is type(new):
            yield from _options(old, new, f"{prefix}{name}.")
        elif old == new:
            continue
        elif isinstance(new, bool) and isinstance(old, bool):
            yield f"--{prefix}{'' if new else 'no-'}{name}"
        else:
            yield from (f"--{prefix}{name}", *_values(new))


def _values(value: Any) -> Sequence[str]:
    if dataclasses.is_dataclass(value) or isinstance(value, dict):
        return [json.dumps(to_plain(value))]
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return ["None" if value is None else str(value)]


def format_command(words: Sequence[str]) -> str:
    """Return a command line for a shell, broken into lines with backslashes."""
    lines, line = [], "signllm"
    for word in _grouped(words):
        if len(line) + len(word) + 3 > WIDTH:
            lines.append(line)
            line = "   "
        line = f"{line} {word}"
    return " \\\n".join([*lines, line])


def _grouped(words: Sequence[str]) -> Iterator[str]:
    """Yield each option together with its values."""
    group: list[str] = []
    for word in words:
        if word.startswith("--") and group:
            yield shlex.join(group)
            group = []
        group.append(word)
    yield shlex.join(group)
