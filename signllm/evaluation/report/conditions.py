"""Under which conditions a run was made: machine, versions, how it was divided, and how long it took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from signllm.evaluation.report.markup import Markup, tag
from signllm.evaluation.report.run_folder import Record, RunFolder, finite, read_object


def conditions(run: RunFolder) -> Markup | None:
    """Return a table of what a run recorded of itself; None if it recorded nothing."""
    start = read_object(run.path / "startup.json") or read_object(run.path / "frozen" / "startup.json")
    rows = [*_made_on(start), *_took(run, start)]
    if not rows:
        return None
    cells = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in rows]
    return tag("div", tag("table", tag("tbody", *cells), class_="conditions"), class_="scroll")


def _made_on(start: Record) -> Iterator[tuple[str, str]]:
    """Yield hardware, versions, and how memory and batch were divided."""
    ranks, nodes = start.get("ranks"), start.get("nodes")
    if ranks:
        on = f" on {_counted(nodes, 'node')}" if nodes else ""
        machine = ", ".join(str(start[name]) for name in ("device", "processor") if start.get(name))
        yield "Hardware", f"{_counted(ranks, 'rank')}{on}: {machine}"
    if start.get("versions"):
        yield "Versions", ", ".join(f"{name} {value}" for name, value in start["versions"].items())
    if start.get("deepspeed"):
        yield "DeepSpeed", f"{start['deepspeed']} (ZeRO-{start.get('zero_stage')}), {start.get('precision')}"
    batch = start.get("batch")
    if isinstance(batch, dict) and batch.get("videos"):
        passes = batch.get("forward_passes", 1)
        yield "Batch", f"{batch['videos']} videos a step" + (f", {passes} passes" if passes != 1 else "")
    parts = start.get("parameters")
    if isinstance(parts, dict):
        learnt, frozen = (
            sum(int(part.get(kind, 0)) for part in parts.values()) for kind in ("trained", "frozen")
        )
        yield "Parameters", f"{learnt:,} trained, {frozen:,} frozen"
    if start.get("begun"):
        yield "Last started", str(start["begun"])


def _took(run: RunFolder, start: Record) -> Iterator[tuple[str, str]]:
    """Yield steps, and hours of training: the time of the steps, without start-up, validation and saving."""
    frozen, joint = trained_for(run.frozen_log), trained_for(run.log)
    if not joint[0] and not frozen[0]:
        return
    named = [(f"{steps:,} with the encoder at rest", steps) for steps in (frozen[0],)]
    named += [(f"{steps:,} jointly" if frozen[0] else f"{steps:,}", steps) for steps in (joint[0],)]
    yield "Steps", ", ".join(told for told, steps in named if steps)
    seconds, ranks = frozen[1] + joint[1], finite(start.get("ranks")) or 1
    if seconds:
        yield "Time of the steps", f"{duration(seconds)}; {seconds * ranks / 3600:.2f} hours of a rank"


def trained_for(log: Sequence[Record]) -> tuple[int, float]:
    """Return the last step of a log, and the seconds that its steps took.

    Each line tells the mean since the last. A step that was logged twice, by an attempt that died and by the
    next, counts once, as the later one.
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


def duration(seconds: float) -> str:
    """Return a duration in the two units that a reader needs."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _counted(number: object, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
