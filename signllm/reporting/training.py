"""The training curves: one small chart for each logged quantity, in the order of the method.

Every number that a stage logs gets a chart; the table below only gives known quantities a title, a unit and
a position. A quantity that is logged as ``validate/x`` or ``lr/x`` is an additional line in the chart of
``x`` or ``lr``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

from signllm.metrics.scores import metric_titles
from signllm.reporting.charts import Chart, Series, line_chart, number
from signllm.reporting.run_folder import Record, RunFolder, finite

KNOWN: dict[str, tuple[str, str]] = {
    "loss": ("Total loss", ""),
    "l_sim": (
        "Translation loss",
        "cross-entropy of the reference under the frozen LLM, nats per token",
    ),
    "l_mmd": ("Alignment loss", "maximum mean discrepancy between sign tokens and text embeddings"),
    "l_vq": ("VQ-Sign loss", "sum of context prediction and quantisation loss"),
    "mmd_fixed": (
        "MMD with a fixed kernel",
        "its bandwidth depends on the text only; 0 means that signs and text are equally distributed",
    ),
    "l_cp": ("Context prediction loss", "discrimination of the next characters from random ones"),
    "l_q": ("Quantisation loss", "distance of the features to their codes"),
    "cp_accuracy": (
        "Context prediction accuracy",
        "share of true and random characters that are distinguished correctly",
    ),
    "perplexity": ("Codebook perplexity", "effective number of codes in use; 1 is a collapsed codebook"),
    "codes_used": ("Codes used", ""),
    "covered": ("Covered by words", "share of characters in words of two or more"),
    "words": ("Sign words", "mean per video"),
    "text_tokens": ("Text tokens", "number in the references of a step"),
    "save_s": ("Saving", "seconds for which a checkpoint delayed the training"),
    "lr": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", "before clipping"),
    **{name: (title, "0 to 100") for name, title in metric_titles().items()},
    "seconds": ("Seconds per step", ""),
    "videos_per_s": ("Videos per second", "over all ranks"),
    "frames_per_s": ("Frames per second", "over all ranks"),
    "clips_per_s": ("Characters per second", "over all ranks"),
    "tokens_per_s": ("Tokens per second", "read by the language model, over all ranks"),
    "data_wait": ("Waiting for data", "share of the step time"),
    "teraflop_per_s": ("Operations", "10¹² per second and rank"),
    "mfu": ("MFU", "necessary operations as a share of the GPU's peak in 16 bits"),
    "memory_gib": ("Memory", "GiB, largest value of all ranks"),
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
FROZEN, JOINT = "First phase: frozen encoder", "Second phase: joint training"
NEGLIGIBLE = 1e-12
"""A quantity whose values differ by less than this is constant."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The quantities that one phase of training logged.

    Attributes:
        name: name of the phase.
        charts: charts of losses and metrics.
        speed: charts of speed and memory.
        constant: quantities that did not change, with their values.
        measured_once: quantities that were measured once, with their values.
    """

    name: str
    charts: list[Chart]
    speed: list[Chart]
    constant: list[str]
    measured_once: list[str]


def training_phases(run: RunFolder) -> list[Phase]:
    """Return the phases of training that logged a quantity that changes."""
    logs = {FROZEN: run.frozen_log} if run.frozen_log else {}
    for record in run.log:
        name = JOINT if run.frozen_log else str(record.get("stage", run.stage))
        logs.setdefault(name, []).append(record)
    phases = [_build_phase(name, log) for name, log in logs.items()]
    return [phase for phase in phases if phase.charts]


def _build_phase(name: str, log: Sequence[Record]) -> Phase:
    phase = Phase(name=name, charts=[], speed=[], constant=[], measured_once=[])
    for quantity, series in group_by_quantity(log).items():
        values = [y for line in series for _, y in line.points]
        title, note = _title(quantity), KNOWN.get(quantity, ("", ""))[1]
        if max(len(line.points) for line in series) == 1:
            for line in series:
                phase.measured_once.append(f"{title} ({line.name}) {number(line.points[0][1])}")
            continue
        if max(values) - min(values) <= NEGLIGIBLE:
            phase.constant.append(f"{title} {number(values[0])}")
            continue
        if len(series) == 1 and series[0].name != "training":
            title = f"{title}, {series[0].name}"
        is_loss = quantity.startswith(("l_", "loss", "grad"))
        chart = line_chart(title, series, x_label="step", note=note, may_be_logarithmic=is_loss)
        if chart:
            (phase.speed if quantity in SPEED else phase.charts).append(chart)
    return phase


def _title(name: str) -> str:
    return KNOWN.get(name, (name.replace("_", " "), ""))[0]


def group_by_quantity(log: Sequence[Record]) -> dict[str, list[Series]]:
    """Return quantity → its series over the steps; known quantities first, training before held-out data.

    A run that was interrupted and resumed logs some steps twice; the later record counts.
    """
    points: dict[tuple[str, str], dict[float, float]] = {}
    for place, record in enumerate(log):
        step = finite(record.get("step", place))
        if step is None:
            continue
        for key, value in _numbers(record).items():
            points.setdefault(_split_key(key), {})[step] = value
    order = {name: place for place, name in enumerate(KNOWN)}
    if any(name == "lr" and where != "training" for name, where in points):
        points.pop(("lr", "training"), None)  # the rate of the first parameter group, which has its own line
    held_out = HELD_OUT_NAMES["validate"]
    if ("l_vq", "training") in points and ("l_vq", held_out) not in points:
        points.pop(
            ("loss", held_out), None
        )  # the held-out sum lacks L_VQ and would look better than that of training
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
    """Return the quantities of a record; ``NaN`` is kept, and counted in the chart."""
    return {
        key: float(value)
        for key, value in record.items()
        if isinstance(value, Real) and not isinstance(value, bool) and key not in AXES
    }


def _split_key(key: str) -> tuple[str, str]:
    """Return the name of a quantity, and the data that it was measured on."""
    where, _, name = key.partition("/")
    if where in HELD_OUT and name:
        quantity, shuffled, _ = name.partition(SHUFFLED)
        return quantity, HELD_OUT_NAMES.get(where, where) + (
            ", with another video's text" if shuffled else ""
        )
    return (where, name) if name else (key, "training")
