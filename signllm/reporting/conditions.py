"""The training conditions of a run: hardware, versions, parallelism, and the time it took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from signllm.reporting.run_folder import Record, RunFolder, finite, read_object


def training_conditions(run: RunFolder) -> list[tuple[str, str]]:
    """Return name and value of the conditions that a run recorded."""
    start = read_object(run.path / "startup.json") or read_object(run.path / "frozen" / "startup.json")
    return [*_setup_rows(start), *_time_rows(run, start)]


def _setup_rows(start: Record) -> Iterator[tuple[str, str]]:
    """Yield the rows about hardware, versions, parallelism, batch and parameters."""
    ranks, nodes = start.get("ranks"), start.get("nodes")
    if ranks:
        on = f" on {_pluralize(nodes, 'node')}" if nodes else ""
        machine = ", ".join(str(start[name]) for name in ("device", "processor") if start.get(name))
        yield "Hardware", f"{_pluralize(ranks, 'rank')}{on}: {machine}"
    if start.get("versions"):
        yield "Versions", ", ".join(f"{name} {value}" for name, value in start["versions"].items())
    if start.get("deepspeed"):
        yield "DeepSpeed", f"{start['deepspeed']} (ZeRO-{start.get('zero_stage')}), {start.get('precision')}"
    batch = start.get("batch")
    if isinstance(batch, dict) and batch.get("videos"):
        passes = batch.get("forward_passes", 1)
        yield (
            "Batch",
            f"{batch['videos']} videos per step" + (f", {passes} forward passes" if passes != 1 else ""),
        )
    parts = start.get("parameters")
    if isinstance(parts, dict):
        trained, frozen = (
            sum(int(part.get(kind, 0)) for part in parts.values()) for kind in ("trained", "frozen")
        )
        yield "Parameters", f"{trained:,} trained, {frozen:,} frozen"
    if start.get("begun"):
        yield "Last started", str(start["begun"])


def _time_rows(run: RunFolder, start: Record) -> Iterator[tuple[str, str]]:
    """Yield the rows about steps and their time, without start-up, validation and saving."""
    frozen, joint = measure_training_time(run.frozen_log), measure_training_time(run.log)
    if not joint[0] and not frozen[0]:
        return
    named = [(f"{steps:,} with a frozen encoder", steps) for steps in (frozen[0],)]
    named += [(f"{steps:,} jointly" if frozen[0] else f"{steps:,}", steps) for steps in (joint[0],)]
    yield "Steps", ", ".join(text for text, steps in named if steps)
    seconds, ranks = frozen[1] + joint[1], finite(start.get("ranks")) or 1
    if seconds:
        yield "Time of the steps", f"{format_duration(seconds)}; {seconds * ranks / 3600:.2f} rank hours"


def measure_training_time(log: Sequence[Record]) -> tuple[int, float]:
    """Return the last step of a log, and the total time of its steps in seconds.

    Each line contains the mean time per step since the line before. A step that was logged twice, because a
    run was interrupted and resumed, counts once with the later value.
    """
    per_step = {
        int(step): seconds
        for line in log
        if (step := finite(line.get("step"))) is not None
        and (seconds := finite(line.get("seconds"))) is not None
    }
    before, total = 0, 0.0
    for step in sorted(per_step):
        total += (step - before) * per_step[step]
        before = step
    return before, total


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as ``2 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _pluralize(number: object, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
