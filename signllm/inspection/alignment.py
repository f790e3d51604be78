"""MMD over training: do the signs come nearer to the LLM's text embeddings, and what becomes of L_sim?

A question of the paper's card. L_MMD itself cannot answer it: its kernel is as wide as signs and text lie
apart. ``mmd_fixed`` of the validations has the kernel of the text alone, and leaves out pairs of a token with
itself: 0 is what two samples of text embeddings have, whatever their sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from signllm.atomic_files import atomic_file
from signllm.errors import UsageError
from signllm.evaluation.compare import aligned, short
from signllm.evaluation.report.run_folder import finite, read_run

MMD, SIM = "validate/mmd_fixed", "validate/l_sim"
MARKS = "os^DvPX*"


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The validations of a run, the first phase (encoder at rest) before the joint one.

    Attributes:
        name: of the run.
        steps: of the validations; those of the joint phase count on from the first.
        mmd: squared MMD by the fixed measure.
        sim: L_sim, nats per token.
        joint: the last step of the first phase, 0 where there was none.
    """

    name: str
    steps: tuple[int, ...]
    mmd: tuple[float, ...]
    sim: tuple[float, ...]
    joint: int


def read_alignments(runs: Sequence[Path]) -> list[Alignment]:
    """Return what the validations of fine-tuned runs logged.

    Raises:
        UsageError: one is no folder, or logged no validation with ``mmd_fixed``.
    """
    return [_read(run, name) for run, name in zip(runs, short([str(run) for run in runs]), strict=True)]


def _read(path: Path, name: str) -> Alignment:
    run = read_run(path)
    found: dict[int, tuple[float, float]] = {}  # a run that was interrupted logs some steps twice
    for record in run.whole_log:
        values = finite(record.get(MMD)), finite(record.get(SIM))
        if values[0] is not None and values[1] is not None:
            found[record["step"]] = (values[0], values[1])
    if not found:
        raise UsageError(
            "no validation of this run tells the discrepancy of signs and text",
            where=path,
            remedy="give a run of: signllm finetune ... --training.validate-every 20",
        )
    steps = sorted(found)
    mmd, sim = zip(*(found[step] for step in steps), strict=True)
    return Alignment(name=name, steps=tuple(steps), mmd=mmd, sim=sim, joint=run.frozen_steps)


def lines(found: Sequence[Alignment]) -> list[str]:
    """Return a table: MMD and L_sim at the first validation, at that of the least MMD, and at the last."""
    table = [("run", "validation", "step", "MMD²", "L_sim")]
    for one in found:
        named = {"first": 0, "least": one.mmd.index(min(one.mmd)), "last": len(one.steps) - 1}
        for place in sorted(set(named.values())):
            when = " and ".join(name for name, at in named.items() if at == place)
            values = str(one.steps[place]), f"{one.mmd[place]:+.4f}", f"{one.sim[place]:.3f}"
            table.append((one.name, when, *values))
    return aligned(table, names=2)


def draw(found: Sequence[Alignment], out: Path) -> None:
    """Draw MMD and L_sim over the steps, a mark for each run; a line where the encoder begins to learn.

    Raises:
        UsageError: the file cannot be written, or is of no kind that matplotlib draws.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if out.suffix[1:] not in kinds:
        raise UsageError(
            f"{out.name} is no kind of picture", where="--out", remedy=f"one of {', '.join(kinds)}"
        )
    above, below = figure.subplots(2, 1, sharex=True)
    for place, one in enumerate(found):
        style = {
            "marker": MARKS[place % len(MARKS)],
            "markersize": 4,
            "linewidth": 1.2,
            "color": f"C{place % 10}",
        }
        above.plot(one.steps, one.mmd, label=one.name, **style)
        below.plot(one.steps, one.sim, label=one.name, **style)
    for axes in (above, below):
        for joint in {one.joint for one in found if one.joint}:
            axes.axvline(joint, color="0.5", linewidth=0.8, linestyle=":")
    above.axhline(0.0, color="0.5", linewidth=0.8)
    above.set_ylabel("MMD² on dev, kernel of the text\n(0: as text to text)")
    below.set_ylabel("L_sim on dev (nats per token)")
    below.set_xlabel("step (dotted: from here the encoder learns too)")
    above.legend(frameon=False)
    with atomic_file(out) as unfinished:
        figure.savefig(unfinished, format=out.suffix[1:], dpi=150)
