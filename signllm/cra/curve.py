"""The curve by which the number of words was chosen, as ``words.png`` and as a run in TensorBoard.

It shows, against the number of candidates: the entropy and the marginal utility, both with and without
normalization by the mean word length, which determines whether the entropy rises or falls; the description
length; and the number of kept words. Line styles and markers distinguish the lines, not colors.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.atomic_files import atomic_file, report_full_disk

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Sequence[Mapping[str, Any]]
PANELS = (
    ("entropy", "Entropy per character", "nats"),
    ("entropy_unnormalised", "Entropy per word (not normalized)", "nats"),
    ("marginal_utility", "Marginal utility, per character", "nats per candidate"),
    ("marginal_utility_unnormalised", "Marginal utility, per word (not normalized)", "nats per candidate"),
    ("description_length", "Description length of words and corpus", "nats per character"),
    ("kept", "Words kept", "words"),
)
"""Key in the curve, title and unit of each panel, row by row."""


def write_curve(run: Path, curve: Curve) -> None:
    """Write ``run/words.png`` and ``run/tensorboard/words``, on one rank; earlier ones are replaced.

    Raises:
        UsageError: the disk is full.
    """
    if not curve:
        return
    figure = draw_curve(curve)
    with atomic_file(run / "words.png") as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)
    board = run / "tensorboard" / "words"
    shutil.rmtree(board, ignore_errors=True)
    with report_full_disk(board):
        _write_board(board, curve, figure)


def draw_curve(curve: Curve) -> Figure:
    """Draw all panels; a dashed line and a ring mark the chosen size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 9), layout="constrained")
    panels = figure.subplots(3, 2, sharex=True)
    chosen = next((entry for entry in curve if entry["chosen"]), None)
    for axes, (key, title, unit) in zip(panels.flat, PANELS, strict=True):
        _draw_panel(axes, curve, key, chosen)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(unit)
    for axes in panels[-1]:
        axes.set_xlabel("candidate words")
    if chosen is not None:
        figure.suptitle(f"{chosen['size']} candidates chosen, {chosen['kept']} words kept", fontsize=12)
    return figure


def _draw_panel(axes: Axes, curve: Curve, key: str, chosen: Mapping[str, Any] | None) -> None:
    """Draw the values of one key of the curve."""
    known = [entry for entry in curve if entry[key] is not None]
    axes.plot(
        [entry["size"] for entry in known],
        [entry[key] for entry in known],
        color="black",
        linewidth=1,
        marker="o",
        markersize=3,
    )
    axes.grid(color="0.85", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if key.startswith("marginal"):
        axes.axhline(0, color="0.5", linewidth=0.8)
    if chosen is None:
        return
    axes.axvline(chosen["size"], color="black", linewidth=1, linestyle="--")
    if chosen[key] is not None:
        axes.plot(chosen["size"], chosen[key], "o", markersize=11, fillstyle="none", color="black")
        is_right = chosen["size"] > 0.7 * curve[-1]["size"]
        axes.annotate(
            f"{chosen['size']}: {chosen[key]:.3g}",
            (chosen["size"], chosen[key]),
            (-10 if is_right else 10, 10),
            textcoords="offset points",
            horizontalalignment="right" if is_right else "left",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def _write_board(board: Path, curve: Curve, figure: Figure) -> None:
    """Write the curve as scalars and the figure as an image for TensorBoard."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from torch.utils.tensorboard import SummaryWriter

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    with SummaryWriter(str(board)) as writer:
        for entry in curve:
            for key in (*(key for key, _, _ in PANELS), "mean_length"):
                if entry[key] is not None:
                    writer.add_scalar(f"words/{key}", entry[key], entry["size"])
        writer.add_image("words/curve", np.asarray(canvas.buffer_rgba())[..., :3], dataformats="HWC")
