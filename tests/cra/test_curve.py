"""The figure of the curve and its scalars in TensorBoard contain every size once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from signllm.cra.curve import PANELS, draw_curve, write_curve
from signllm.cra.transport import SizeResult, describe_curve

CURVE = describe_curve(
    [
        SizeResult(size, np.ones(size, dtype=bool), 5 + size / 100, 1 + size / 50, 9, 0.0, 4 - size / 99)
        for size in (0, 32, 64, 96)
    ],
    2,
)


def test_the_picture_and_the_scalars_are_written_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        write_curve(tmp_path, CURVE)
    with Image.open(tmp_path / "words.png") as picture:
        assert min(picture.size) > 600
        assert len(set(picture.convert("L").tobytes())) > 10
    events = EventAccumulator(str(tmp_path / "tensorboard" / "words")).Reload()
    for key, _, _ in PANELS:
        result = [(event.step, event.value) for event in events.Scalars(f"words/{key}")]
        expected = [(entry["size"], pytest.approx(entry[key])) for entry in CURVE if entry[key] is not None]
        assert result == expected
    assert [event.value for event in events.Scalars("words/kept")] == [0, 32, 64, 96]
    assert len(events.Images("words/curve")) == 1


def test_the_chosen_size_is_named_and_marked_in_every_panel() -> None:
    figure = draw_curve(CURVE)
    assert figure.get_suptitle() == "64 candidates chosen, 64 words kept"
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [64]
        assert [text.get_text().split(":")[0] for text in axes.texts] == ["64"]


def test_one_size_can_be_drawn_and_none_is_not(tmp_path: Path) -> None:
    write_curve(tmp_path, describe_curve([SizeResult(0, np.zeros(0, bool), 3.0, 1.0, 1, 0.0)], 0))
    assert (tmp_path / "words.png").is_file()
    write_curve(tmp_path / "none", ())
    assert not (tmp_path / "none").exists()
