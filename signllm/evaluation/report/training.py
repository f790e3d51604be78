"""The section of training curves: one small chart per logged quantity, in the order of the method.

Any number that a stage logs gets a chart; the table below only gives the known ones a name, a unit and a
place. A quantity logged as ``validate/x`` or ``lr/x`` is a further line in the chart of ``x`` or ``lr``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

from signllm.evaluation.report.chart import Series, line_chart
from signllm.evaluation.report.markup import Markup, joined, number, tag
from signllm.evaluation.report.run_folder import Record, RunFolder, finite
from signllm.evaluation.scores import metric_titles

KNOWN: dict[str, tuple[str, str]] = {
    "loss": ("Total loss", ""),
    "l_sim": (
        "Translation loss",
        "cross-entropy of the reference through the frozen LLM, nats per token",
    ),
    "l_mmd": ("Alignment loss", "maximum mean discrepancy between sign tokens and text embeddings"),
    "l_vq": ("VQ-Sign loss", "context prediction and quantisation together"),
    "mmd_fixed": (
        "Discrepancy by a fixed measure",
        "the same by the kernel of the text alone; 0 is as text to text",
    ),
    "l_cp": ("Context prediction loss", "can the next characters be told from random ones"),
    "l_q": ("Quantisation loss", "distance of features to their codes"),
    "cp_accuracy": ("Context prediction accuracy", "share of true and random characters told apart"),
    "perplexity": ("Codebook perplexity", "codes in effective use; 1 is a collapsed codebook"),
    "codes_used": ("Codes used", ""),
    "covered": ("Covered by words", "share of characters inside words of two and more"),
    "words": ("Sign words", "of a video, mean"),
    "text_tokens": ("Text tokens", "of the references of a step"),
    "save_s": ("Saving", "seconds that a checkpoint held training up"),
    "composed_words": ("Words composed anew", "how many there are then"),
    "kept_words": ("Words kept", "share of the words before that are words again"),
    "lr": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", "before clipping"),
    **{name: (title, "0 to 100") for name, title in metric_titles().items()},
    "seconds": ("Seconds per step", ""),
    "videos_per_s": ("Videos per second", "over all ranks"),
    "frames_per_s": ("Frames per second", "over all ranks"),
    "clips_per_s": ("Characters per second", "over all ranks"),
    "tokens_per_s": ("Tokens per second", "that the language model reads, over all ranks"),
    "data_wait": ("Waiting for data", "share of the time"),
    "teraflop_per_s": ("Operations", "10¹² per second and rank"),
    "mfu": ("MFU", "operations the method needs, share of the GPU's peak in 16 bits"),
    "memory_gib": ("Memory", "GiB, of the rank that takes most"),
    "memory_mean_gib": ("Memory, mean of ranks", "GiB"),
}
AXES = ("step", "epoch")
SPEED = (
    "seconds",
    "videos_per_s",
    "frames_per_s",
    "clips_per_s",
    "tokens_per_s",
    "data_wait",
    "teraflop_per_s",
    "mfu",
    "memory_gib",
    "memory_mean_gib",
)
HELD_OUT = ("dev", "validate", "test")
HELD_OUT_NAMES = {"validate": "held out"}
SHUFFLED = "_shuffled"
FROZEN, JOINT = "First, the encoder at rest", "Then all together"
NEGLIGIBLE = 1e-12


def training_charts(run: RunFolder) -> Markup | None:
    """Return the charts of a run's log, or ``None`` when it logged nothing that changes."""
    phases = {FROZEN: run.frozen_log} if run.frozen_log else {}
    for record in run.log:
        name = JOINT if run.frozen_log else str(record.get("stage", run.stage))
        phases.setdefault(name, []).append(record)
    blocks = [(name, charts) for name, log in phases.items() if (charts := _charts(log))]
    if len(blocks) == 1:
        return blocks[0][1]
    return joined(part for name, charts in blocks for part in (tag("h3", name), charts)) if blocks else None


def _charts(log: Sequence[Record]) -> Markup | None:
    """Return one chart for each quantity, and a line about those that were measured once or never change."""
    charts: list[Markup | None] = []
    speed: list[Markup | None] = []
    constants: list[str] = []
    once: list[str] = []
    for name, series in grouped(log).items():
        values = [y for one in series for _, y in one.points]
        if max(len(one.points) for one in series) == 1:
            once += [f"{_title(name)} ({one.name}) {number(one.points[0][1])}" for one in series]
            continue
        if max(values) - min(values) <= NEGLIGIBLE:
            constants.append(f"{_title(name)} {number(values[0])}")
            continue
        title, note = _title(name), KNOWN.get(name, ("", ""))[1]
        if len(series) == 1 and series[0].name != "training":
            title = f"{title}, {series[0].name}"
        is_loss = name.startswith(("l_", "loss", "grad"))
        chart = line_chart(title, series, x_label="step", note=note, may_be_logarithmic=is_loss)
        (speed if name in SPEED else charts).append(chart)
    shown = [chart for chart in charts if chart is not None]
    if not shown:
        return None
    still = [
        tag("p", f"{what}: {', '.join(named)}.", class_="hint")
        for what, named in (("Constant throughout", constants), ("Measured once", once))
        if named
    ]
    timed = tag("details", tag("summary", "Speed"), tag("div", *speed, class_="charts")) if speed else None
    return joined((tag("div", *shown, class_="charts"), *still, timed))


def _title(name: str) -> str:
    return KNOWN.get(name, (name.replace("_", " "), ""))[0]


def grouped(log: Sequence[Record]) -> dict[str, list[Series]]:
    """Collect each logged quantity over steps; known ones first, training before held-out values.

    A run that was interrupted logs some steps twice: the later record stands.
    """
    points: dict[tuple[str, str], dict[float, float]] = {}
    for place, record in enumerate(log):
        step = finite(record.get("step", place))
        if step is None:
            continue
        for key, value in _numbers(record).items():
            points.setdefault(_split(key), {})[step] = value
    order = {name: place for place, name in enumerate(KNOWN)}
    if any(name == "lr" and where != "training" for name, where in points):
        points.pop(("lr", "training"), None)  # the first group's rate, which has a line of its own
    held_out = HELD_OUT_NAMES["validate"]
    if ("l_vq", "training") in points and ("l_vq", held_out) not in points:
        points.pop(("loss", held_out), None)  # a sum without L_VQ, which would look like a better one
    names = sorted({name for name, _ in points}, key=lambda name: (order.get(name, len(order)), name))
    return {
        name: [
            Series(name=where, points=sorted(steps.items()))
            for (other, where), steps in points.items()
            if other == name
        ]
        for name in names
    }


def _numbers(record: Mapping[str, object]) -> dict[str, float]:
    """Return a record's quantities; ``NaN`` in the log stays and is counted below its chart."""
    return {
        key: float(value)
        for key, value in record.items()
        if isinstance(value, Real) and not isinstance(value, bool) and key not in AXES
    }


def _split(key: str) -> tuple[str, str]:
    """Separate a quantity from the data it was measured on."""
    where, _, name = key.partition("/")
    if where in HELD_OUT and name:
        of, shuffled, _ = name.partition(SHUFFLED)
        return of, HELD_OUT_NAMES.get(where, where) + (", other videos' texts" if shuffled else "")
    return (where, name) if name else (key, "training")
