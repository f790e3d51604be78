"""Tests of the picture of a video with its tokens."""

from __future__ import annotations

import numpy as np

from signllm.data.token_strip import BAND, CELL, CHARACTERS_PER_ROW, LINE, MARGIN, WordSpan, draw_strip


def frames(count: int) -> np.ndarray:
    """Return frames in which frame t has grey level t."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 16, 16, 3))


def test_the_strip_shows_the_middle_frame_of_each_character_in_rows() -> None:
    characters = [5] * (CHARACTERS_PER_ROW + 3)
    picture = draw_strip(frames(117), characters, [], ["one", "two"])
    row = CELL + 2 * BAND + MARGIN
    assert picture.shape == (2 * MARGIN + 2 * LINE + 2 * row, 2 * MARGIN + CHARACTERS_PER_ROW * CELL, 3)
    top = MARGIN + 2 * LINE + CELL // 2
    assert picture[top, MARGIN + CELL // 2].tolist() == [6] * 3
    assert picture[top, MARGIN + CELL + CELL // 2].tolist() == [10] * 3
    assert picture[top + row, MARGIN + CELL // 2].tolist() == [6 + 4 * CHARACTERS_PER_ROW] * 3
    assert picture[top + row, MARGIN + 3 * CELL + CELL // 2].tolist() == [255] * 3  # after the last


def test_words_of_two_have_brackets_that_are_open_where_they_go_on() -> None:
    characters = list(range(CHARACTERS_PER_ROW + 2))
    words = [WordSpan("a", 0, 1), WordSpan("b", CHARACTERS_PER_ROW - 2, CHARACTERS_PER_ROW + 1)]
    drawn, bare = (draw_strip(frames(200), characters, value, []) for value in (words, []))
    ys, xs = np.nonzero((drawn != bare).any(axis=2))
    row = CELL + 2 * BAND + MARGIN
    first, second = xs[ys < MARGIN + row], xs[ys >= MARGIN + row]
    assert first.min() >= MARGIN + (CHARACTERS_PER_ROW - 2) * CELL
    assert second.max() < MARGIN + CELL
    bracket = MARGIN + CELL + BAND
    right_of_first, left_of_second = drawn[bracket, first.max()], drawn[bracket + row, second.min()]
    assert right_of_first.tolist() == left_of_second.tolist() == [255] * 3


def test_text_that_is_too_long_is_cut_and_letters_of_any_script_are_drawn() -> None:
    long = draw_strip(frames(20), [1, 2], [], ["x" * 500])
    assert long.shape[1] == 2 * MARGIN + CHARACTERS_PER_ROW * CELL
    assert (long[: MARGIN + LINE, -MARGIN:] == 255).all()
    assert (draw_strip(frames(20), [1], [], ["дождь"])[: MARGIN + LINE] < 128).any()
