"""Text in scripts without spaces between words: Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan.

Such text is counted and scored by characters, because a sentence of it would be a single word. Korean has
spaces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_RANGES = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9d"  # kana, iteration marks
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u0e00-\u0e7f\u0e80-\u0eff\u0f00-\u0fff"  # Thai, Lao, Tibetan
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"  # Burmese, Khmer
    "\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9df\ua000-\ua4cf"  # Tai, Balinese, Javanese, Yi
)
_CHARACTER = re.compile(f"([{_RANGES}])")
_LETTER = re.compile(r"[^\W\d_]")
_HAN = re.compile("[\u4e00-\u9fff]")
_KANA = re.compile("[\u3040-\u30ff]")


def is_unspaced(text: str) -> bool:
    """Return whether more than half of the letters of a text belong to scripts without spaces."""
    return 2 * len(_CHARACTER.findall(text)) > len(_LETTER.findall(text))


def separate_characters(text: str) -> str:
    """Return a text with spaces around every character of these scripts; other words are not split."""
    return " ".join(_CHARACTER.sub(r" \1 ", text).split())


def all_chinese(texts: Sequence[str]) -> bool:
    """Return whether texts are Chinese: some contain Chinese characters, and none contains Japanese kana."""
    return any(map(_HAN.search, texts)) and not any(map(_KANA.search, texts))
