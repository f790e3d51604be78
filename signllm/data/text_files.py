"""Reading text files in UTF-8, UTF-16, or an older encoding that can be recognised with certainty.

UTF-8 is tried first; a byte order mark indicates UTF-16. Other files are read as Windows-1252, the encoding
of Excel in western Europe, or as GB18030, that of Excel in China, but only if the result resembles text of
that kind; then there is a notice for the user. All other files are refused, because a model would learn wrong
letters from a wrong guess.
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signllm.errors import UsageError
from signllm.storage import wait_for_storage

LINE_END = re.compile(r"\r\n|\r|\n")
"""Line ends of Windows, old Macs and Unix; ``str.splitlines`` has more, which occur inside sentences."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HIGH_RUN = re.compile(rb"[\x80-\xff]{3,}")
_HIGH = re.compile(rb"[\x80-\xff]")
_BETWEEN_LETTERS = re.compile(r"([A-Za-z])([^\x00-\x7f])(?=[A-Za-z])")
_SURROGATE = re.compile("[\ud800-\udfff]")
_FREQUENT_HANZI = frozenset(
    "的一是了不在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
    "天今明好去吃学家很什么想看吗没爱喜欢妈爸老师生朋友车水电话请问谢"
)
"""Frequent characters of Chinese; few of them appear if another encoding is read as GB18030."""


@dataclass(frozen=True)
class DecodedText:
    """The content of a text file.

    Attributes:
        text: text without a byte order mark. Invalid bytes of a UTF-8 file are lone surrogates, which
            :func:`is_undecodable` detects.
        notice: sentence about the encoding for the user, "" for UTF-8, and for UTF-16 with a byte order mark.
    """

    text: str
    notice: str = ""

    @property
    def lines(self) -> list[str]:
        """Lines without their ends; a line end at the end of the text starts no further line."""
        lines = LINE_END.split(self.text)
        return lines[:-1] if lines[-1] == "" else lines


def read_text(path: Path) -> DecodedText:
    """Return the text of a file, waiting for its storage.

    Raises:
        OSError: the file cannot be read.
        UsageError: its encoding is not recognised with certainty.
    """
    return decode_text(wait_for_storage(path.read_bytes, path), where=path)


def decode_text(data: bytes, *, where: object) -> DecodedText:
    """Return the text of the bytes of a file.

    Args:
        data: bytes of the file.
        where: path of the file, for messages.

    Raises:
        UsageError: the encoding is not recognised with certainty.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decode_marked(data, encoding, where)
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.count(b"\0") > len(data) // 4:
        little_endian = data[1::2].count(b"\0") >= data[::2].count(b"\0")
        encoding = "utf-16-le" if little_endian else "utf-16-be"
        return DecodedText(data.decode(encoding, "replace"), f"read as {encoding.upper()}: it has no mark")
    try:
        return DecodedText(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        if _is_damaged_utf8(data):
            return DecodedText(data.decode("utf-8", "surrogateescape"))
        return _decode_legacy(data, error.start, where)


def is_undecodable(text: str) -> bool:
    """Return whether a text contains lone surrogates, which stand for invalid bytes."""
    return _SURROGATE.search(text) is not None


def _decode_marked(data: bytes, encoding: str, where: object) -> DecodedText:
    try:
        return DecodedText(data.decode(encoding))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the {encoding.upper()} text is damaged: {error.reason} at byte {error.start}",
            where=where,
            remedy="save it again as UTF-8",
        ) from None


def _is_damaged_utf8(data: bytes) -> bool:
    """Return whether most lines with non-ASCII characters are UTF-8, so that the other lines are damaged."""
    lines = [line for line in data.split(b"\n") if not line.isascii()]
    return sum(map(_is_utf8, lines)) * 2 > len(lines)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _decode_legacy(data: bytes, start: int, where: object) -> DecodedText:
    """Decode bytes that are not UTF-8 if exactly one older encoding gives plausible text.

    Args:
        data: bytes of the file.
        start: position of the first byte that is not UTF-8.
        where: path of the file, for messages.
    """
    line = data.count(b"\n", 0, start) + 1
    high = len(_HIGH.findall(data))
    in_runs = sum(map(len, _HIGH_RUN.findall(data)))
    for encoding, name, is_text, fits in (
        ("cp1252", "Windows-1252", _is_western_text, in_runs * 3 < high),
        ("gb18030", "GB18030", _is_chinese_text, in_runs * 3 >= high),
    ):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if fits and is_text(text):
            example = LINE_END.split(text)[line - 1].strip()[:60]
            return DecodedText(
                text, f"the file is not UTF-8 and was read as {name}: line {line} is {example!r}"
            )
    lines = data.split(b"\n")
    if sum(not line.isascii() for line in lines) * 100 <= len(
        lines
    ):  # at most one line of a hundred is damaged
        return DecodedText(data.decode("utf-8", "surrogateescape"))
    raise UsageError(
        f"the file is not UTF-8: byte {data[start : start + 1].hex()} in line {line}",
        where=where,
        remedy="save it as UTF-8 (Excel: CSV UTF-8), or convert it: iconv -f ITS_ENCODING -t UTF-8",
    )


def _is_western_text(text: str) -> bool:
    """Return whether non-ASCII characters between Latin letters are small letters, apostrophes or dashes.

    Text from central Europe (ł is ³ in Windows-1252) or from an old Mac (ü is Ÿ) has other characters there.
    """
    between: list[tuple[str, str]] = _BETWEEN_LETTERS.findall(text)
    return not any(
        inner not in "’‘´-\xad–—…" and not (inner.isalpha() and (inner.islower() or before.isupper()))
        for before, inner in between
    )


def _is_chinese_text(text: str) -> bool:
    """Return whether at least a tenth of the non-ASCII characters are frequent characters of Chinese."""
    characters = [character for character in text if ord(character) > 127]
    return sum(character in _FREQUENT_HANZI for character in characters) >= 0.1 * len(characters)


def parse_json(data: bytes | str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, contains NaN or Infinity, or is nested too deeply.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
