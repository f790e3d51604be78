"""What ``launch --dry-run`` prints about a job in advance, as comments in its sbatch file.

It shows the configuration as the run's ``config.json`` will record it, the batch over the ranks, and what
each rank keeps in memory and sends. Only configurations are loaded, so it needs no Slurm, no GPU and no
weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from signllm.cluster.planning.zero_costs import (
    Weight,
    Zero,
    largest_block,
    planned_model_states,
    read_zero,
    step_traffic,
)
from signllm.cluster.profile import Profile
from signllm.config import FinetuneConfig, PretrainConfig, Recipe
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.mixture import open_mixture, parse_mixture
from signllm.errors import UsageError
from signllm.stages.finetune import with_language_of
from signllm.stages.initial_run import with_encoder_from
from signllm.training.engine import TrainingConfig, deepspeed_settings
from signllm.training.startup import format_bytes, format_count
from signllm.validation import to_plain

WIDTH = 110


def check_batch(options: Mapping[str, Any], profile: Profile) -> None:
    """Refuse a batch that the job would refuse when it starts, possibly after hours in the queue.

    Raises:
        UsageError: the batch does not divide over the ranks, or the ZeRO file does not allow this number of
            ranks.
    """
    config = options.get("config")
    for stage in (config.pretrain, config.finetune) if isinstance(config, Recipe) else (config,):
        training = getattr(stage, "training", None)
        if training is not None:
            deepspeed_settings(training, world=profile.ranks)


def describe_job(verb: str, options: Mapping[str, Any], profile: Profile, *, jobs: int = 1) -> str:
    """Return configuration, batch and plan of a verb's job as comment lines.

    Args:
        verb: name of the verb.
        options: parsed options by the parameter names of the verb's function.
        profile: the job's profile.
        jobs: number of jobs of a sweep, of which this is the first.

    Raises:
        UsageError: as in :func:`check_batch`, or ``--init`` does not fit.
    """
    config, unknown = _resolved(options)
    where = f", as {options['run']}/config.json will hold it" if verb in ("pretrain", "finetune") else ""
    which = f" of the first of {jobs} jobs" if jobs > 1 else ""
    lines = [f"configuration of {verb}{which}{where}", *configuration_lines(config), *map(_indented, unknown)]
    if isinstance(config, PretrainConfig | FinetuneConfig):
        lines += ["", *_batch_lines(config, profile), *_plan_lines(config, options, profile)]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def configuration_lines(config: Any) -> list[str]:
    """Return every setting as NAME=VALUE with the value in JSON, grouped by dotted prefix."""
    lines = []
    for name, settings in _parts(to_plain(config)):
        indent = "  "
        if name:
            lines.append(f"  {name}")
            indent = "    "
        line = ""
        for key, value in settings.items():
            item = f"{key}={json.dumps(value, ensure_ascii=False)}"
            if line and len(indent) + len(line) + 2 + len(item) > WIDTH - 2:
                lines.append(indent + line)
                line = ""
            line = f"{line}  {item}" if line else item
        lines.append(indent + line)
    return lines


def _parts(plain: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    own = {key: value for key, value in plain.items() if not (isinstance(value, dict) and value)}
    if own:
        yield name, own
    for key, value in plain.items():
        if key not in own:
            yield from _parts(value, f"{name}.{key}".lstrip("."))


def _resolved(options: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Return the options as the job will see them, and what this machine cannot know of them."""
    config = options.get("config")
    if config is None:
        return options, []
    unknown = []
    if isinstance(config, Recipe):
        config = replace(config, finetune=config.finetune.with_llm(options.get("llm")))
    if isinstance(config, FinetuneConfig):
        config = config.with_llm(options.get("llm"))
        init = Path(options["init"])
        if (init / "config.json").is_file():
            config = with_encoder_from(init, config)
        else:
            unknown.append(f"sign_llm.vq_sign will be that of {init}, which is not on this machine")
        if config.generation.language is None:
            if all(Path(name).is_dir() for name, _ in parse_mixture(options["data"])):
                config = with_language_of(open_mixture(options["data"]), config)
            else:
                unknown.append(
                    f"generation.language will be the most common one of {options['data']} (no local folder)"
                )
    return config, unknown


def _batch_lines(config: PretrainConfig | FinetuneConfig, profile: Profile) -> list[str]:
    training, ranks = config.training, profile.ranks
    passes = training.accumulation
    limit = config.data.max_frames_per_batch
    return [
        "batch",
        f"  {_counted(profile.nodes, 'node')} x {_counted(profile.ranks_per_node, 'task')}"
        f" = {_counted(ranks, 'rank')}",
        f"  {training.batch_size} videos per optimizer step = {training.videos_per_forward // ranks} per rank"
        f" x {_counted(ranks, 'rank')} x {_counted(passes, 'forward pass', 'es')}"
        + (f"; fewer where they have more than {limit} frames" if limit else ""),
        "",
    ]


def _plan_lines(
    config: PretrainConfig | FinetuneConfig, options: Mapping[str, Any], profile: Profile
) -> Iterator[str]:
    from signllm.cluster.planning.model_tensors import phase_tensors

    ranks, training = profile.ranks, config.training
    settings = deepspeed_settings(training, world=ranks)
    for phase in phase_tensors(config, words=_words(options)):
        stage = settings["zero_optimization"]["stage"]
        phase_name = f" of the phase {phase.name}" if phase.name else ""
        yield f"plan{phase_name}: ZeRO-{stage} ({training.deepspeed}), {training.precision}"
        try:
            zero = read_zero(settings, ranks=ranks)
        except UsageError as error:
            yield f"  {error.what}"
            continue
        if phase.weights:
            yield from _format_model_states(phase.weights, zero, settings["zero_optimization"])
            yield from _traffic_lines(phase.weights, zero, training, profile)
        yield from (f"  not counted: {line}" for line in phase.missing)
        yield ""


def _format_model_states(
    weights: Sequence[Weight], zero: Zero, zero_settings: Mapping[str, Any]
) -> Iterator[str]:
    yield f"  trained  {_sums(weights, trained=True)}"
    yield f"  frozen   {_sums(weights, trained=False)}"
    parts = to_plain(planned_model_states(weights, zero))
    sizes = ", ".join(f"{part} {format_bytes(size)}" for part, size in parts.items())
    yield f"  memory   per rank: {sizes}; together {format_bytes(sum(parts.values()))}"
    yield from _offload_lines(zero_settings)
    block = largest_block(weights, zero)
    gathered = f", and blocks of up to {format_bytes(block)} while they are gathered" if block else ""
    yield f"  in addition: activations, buckets{gathered}"


def _offload_lines(zero_settings: Mapping[str, Any]) -> Iterator[str]:
    names = {"offload_optimizer": "gradients and optimizer", "offload_param": "partitioned weights"}
    for key, what in names.items():
        if zero_settings.get(key, {}).get("device", "none") != "none":
            yield f"    of this, {what} are in the memory of the CPU ({key})"


def _traffic_lines(
    weights: Sequence[Weight], zero: Zero, training: TrainingConfig, profile: Profile
) -> Iterator[str]:
    collectives = step_traffic(weights, zero, forward_passes=training.accumulation)
    for collective in collectives:
        yield f"  per step, {collective.kind} of {collective.purpose}: {format_bytes(collective.bytes)}"
    if collectives:
        sent = format_bytes(round(sum(collective.sent(zero.ranks) for collective in collectives)))
        between = ", and each node as much to the next" if profile.nodes > 1 else ""
        yield f"  per step, each rank sends {sent} in a ring{between}"


def _sums(weights: Sequence[Weight], *, trained: bool) -> str:
    sums: dict[str, int] = {}
    for weight in weights:
        if weight.trained == trained:
            part = weight.name.split(".")[0]
            sums[part] = sums.get(part, 0) + weight.elements
    return ", ".join(f"{part} {format_count(elements)}" for part, elements in sums.items()) or "nothing"


def _words(options: Mapping[str, Any]) -> WordCodebook | None:
    init = options.get("words") or options.get("init")
    return WordCodebook.load(init) if init is not None and (Path(init) / "words.json").is_file() else None


def _counted(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{plural if number != 1 else ''}"


def _indented(line: str) -> str:
    return f"  {line}"
