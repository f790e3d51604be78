"""Tests of the choice of a font that has all letters of a text."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest

from signllm.data import fonts
from signllm.data.fonts import choose_font

CHINESE = "今天天气好"
OTHER = Path(matplotlib.get_data_path(), "fonts/ttf/STIXNonUniBol.ttf")
"""A font that has letters which DejaVu Sans lacks."""


@pytest.fixture
def system_fonts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of fonts that the system appears to have; tests append to it."""
    result: list[str] = []
    monkeypatch.setattr(fonts, "_list_system_fonts", lambda: tuple(result))
    return result


def test_latin_and_cyrillic_need_nothing_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_list_system_fonts", lambda: pytest.fail("the system was asked"))
    for text in ("über Süden s₀", "дождь", "", "two words"):
        shown, font = choose_font(text, 11)
        assert (shown, font.getname()[0], font.size) == (text, "DejaVu Sans", 11)


def test_a_font_of_the_system_that_has_the_letters_is_taken(system_fonts: list[str], tmp_path: Path) -> None:
    own = sorted(fonts._read_letters(str(OTHER)) - fonts._read_letters(next(fonts._list_fonts())))
    assert own
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    system_fonts += [str(tmp_path / "broken.ttf"), str(tmp_path / "gone.ttf"), str(OTHER)]
    shown, font = choose_font(chr(own[0]) * 3, 11)
    assert (shown, font.path) == (chr(own[0]) * 3, str(OTHER))


@pytest.mark.usefixtures("system_fonts")
def test_letters_that_no_font_has_are_counted() -> None:
    assert choose_font(CHINESE, 11)[0] == "[5 letters that no font of this machine has]"
    assert (
        choose_font(f"train/S1 {CHINESE}", 11)[0] == "train/S1 [5 letters that no font of this machine has]"
    )


def test_chinese_is_drawn_where_the_system_can() -> None:
    able = [path for path in fonts._list_system_fonts() if {*map(ord, CHINESE)} <= fonts._read_letters(path)]
    shown, font = choose_font(CHINESE, 11)
    assert shown == CHINESE if able else "no font" in shown
    box, drawn = (
        font.getmask("\U0010ffff"),
        [bytes(font.getmask(letter)) for letter in shown if letter != " "],
    )
    assert bytes(box) not in drawn
