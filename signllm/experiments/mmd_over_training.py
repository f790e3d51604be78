"""MMD over training: do the sign tokens approach the LLM's text embeddings, and how does L_sim change?

The training loss L_MMD cannot answer this, because the bandwidth of its kernel adapts to the distance between
signs and text. The validation metric ``mmd_fixed`` uses a kernel whose bandwidth depends on the text
embeddings only, and its estimator leaves out pairs of a token with itself. Its values from different steps
are therefore comparable, and its expected value for two samples of text embeddings is 0, whatever their
sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from signllm.atomic_files import atomic_file
from signllm.errors import UsageError
from signllm.reporting.compare import align_columns, shorten_run_names
from signllm.reporting.run_folder import finite, read_run

MMD, SIM = "validate/mmd_fixed", "validate/l_sim"
MARKERS = "os^DvPX*"


@dataclass(frozen=True, kw_only=True)
class AlignmentCurve:
    """The validation results of one fine-tuned run: first those with a frozen encoder, then the joint ones.

    Attributes:
        name: name of the run.
        steps: step of each validation; those of the joint phase are counted on from the first phase.
        mmd: squared MMD between sign tokens and text embeddings, with the fixed kernel.
        sim: L_sim, in nats per token.
        joint: last step of the first phase, 0 if there was none.
    """

    name: str
    steps: tuple[int, ...]
    mmd: tuple[float, ...]
    sim: tuple[float, ...]
    joint: int


def read_alignment_curves(runs: Sequence[Path]) -> list[AlignmentCurve]:
    """Read the validation results that fine-tuned runs logged.

    Raises:
        UsageError: A run folder does not exist, or its log has no validation with ``mmd_fixed``.
    """
    names = shorten_run_names([str(run) for run in runs])
    return [_read_curve(run, name) for run, name in zip(runs, names, strict=True)]


def _read_curve(path: Path, name: str) -> AlignmentCurve:
    run = read_run(path)
    values: dict[
        int, tuple[float, float]
    ] = {}  # a resumed run logs some steps twice: the later record counts
    for record in run.combined_log:
        mmd, sim = finite(record.get(MMD)), finite(record.get(SIM))
        if mmd is not None and sim is not None:
            values[record["step"]] = (mmd, sim)
    if not values:
        raise UsageError(
            "no validation of this run measured the discrepancy between signs and text",
            where=path,
            remedy="give a run of: signllm finetune ... --training.validate-every 20",
        )
    steps = sorted(values)
    mmds, sims = zip(*(values[step] for step in steps), strict=True)
    return AlignmentCurve(name=name, steps=tuple(steps), mmd=mmds, sim=sims, joint=run.frozen_steps)


def format_alignments(curves: Sequence[AlignmentCurve]) -> list[str]:
    """Return a table of MMD and L_sim at the first validation, at the one of least MMD, and at the last."""
    table = [("run", "validation", "step", "MMD²", "L_sim")]
    for curve in curves:
        named = {"first": 0, "least": curve.mmd.index(min(curve.mmd)), "last": len(curve.steps) - 1}
        for index in sorted(set(named.values())):
            label = " and ".join(name for name, place in named.items() if place == index)
            values = str(curve.steps[index]), f"{curve.mmd[index]:+.4f}", f"{curve.sim[index]:.3f}"
            table.append((curve.name, label, *values))
    return align_columns(table, names=2)


def draw_alignments(curves: Sequence[AlignmentCurve], out: Path) -> None:
    """Draw MMD and L_sim over the steps, one marker for each run.

    A dotted line marks the step from which the encoder is trained too.

    Raises:
        UsageError: The file cannot be written, or matplotlib cannot draw a file of its type.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    formats = figure.canvas.get_supported_filetypes()
    if out.suffix[1:] not in formats:
        raise UsageError(
            f"{out.name} is not a picture that can be drawn",
            where="--out",
            remedy=f"give a name that ends in one of {', '.join(formats)}",
        )
    mmd_axes, sim_axes = figure.subplots(2, 1, sharex=True)
    for index, curve in enumerate(curves):
        style = {
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.2,
            "color": f"C{index % 10}",
        }
        mmd_axes.plot(curve.steps, curve.mmd, label=curve.name, **style)
        sim_axes.plot(curve.steps, curve.sim, label=curve.name, **style)
    for axes in (mmd_axes, sim_axes):
        for joint in {curve.joint for curve in curves if curve.joint}:
            axes.axvline(joint, color="0.5", linewidth=0.8, linestyle=":")
    mmd_axes.axhline(0.0, color="0.5", linewidth=0.8)
    mmd_axes.set_ylabel("MMD² on dev, fixed kernel\n(0: same distribution as text)")
    sim_axes.set_ylabel("L_sim on dev (nats per token)")
    sim_axes.set_xlabel("step (dotted line: from here the encoder is trained too)")
    mmd_axes.legend(frameon=False)
    with atomic_file(out) as unfinished:
        figure.savefig(unfinished, format=out.suffix[1:], dpi=150)
