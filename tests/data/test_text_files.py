"""Tests of reading text files in the encodings that people use."""

from __future__ import annotations

import pytest

from signllm.data.text_files import decode_text, is_undecodable
from signllm.errors import UsageError

GERMAN = "id,text\n1,am Abend spät GRÖSSERE Schauer\n2,grün „und“ schön\n"
CHINESE = "id,text\n1,今天天气很好\n2,我们去学校吃饭\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_without_a_notice(encoding: str) -> None:
    decoded = decode_text(GERMAN.encode(encoding), where="t")
    assert (decoded.text, decoded.notice) == (GERMAN, "")


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        (GERMAN, "cp1252", "Windows-1252"),
        ("a don’t “go”, mañana créée\n", "cp1252", "Windows-1252"),
        (CHINESE, "gb18030", "GB18030"),
        (GERMAN, "utf-16-le", "UTF-16-LE"),
        (GERMAN, "utf-16-be", "UTF-16-BE"),
    ],
)
def test_what_is_certain_without_a_mark_is_read_with_a_notice(text: str, encoding: str, name: str) -> None:
    decoded = decode_text(text.encode(encoding), where="t")
    assert decoded.text == text
    assert name in decoded.notice


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("książka żółta łódź\n", "cp1250"),
        ("grün spät schön\n", "mac_roman"),
        ("今天天氣很好\n", "big5"),
        ("오늘은 날씨가 좋습니다\n", "euc-kr"),
        ("今日は天気がいいです\n", "shift_jis"),
        ("сегодня хорошая погода\n", "cp1251"),
        ("วันนี้อากาศดี\n", "tis-620"),
    ],
)
def test_what_would_be_guessed_is_refused_with_its_line(text: str, encoding: str) -> None:
    with pytest.raises(UsageError, match=r"not UTF-8.* in line 2") as raised:
        decode_text(b"id,text\n" + text.encode(encoding), where="t")
    assert "iconv" in str(raised.value.remedy)


def test_a_damaged_line_of_a_utf8_file_stays_one_line() -> None:
    data = GERMAN.encode() + b"3,gr\xfcn\n"
    lines = decode_text(data, where="t").lines
    assert [is_undecodable(line) for line in lines] == [False, False, False, True]
    assert lines[:3] == GERMAN.splitlines()


def test_only_ends_of_lines_end_lines() -> None:
    text = "a\u2028b\r\nc\x0bd\re\x85f\n"
    assert decode_text(text.encode(), where="t").lines == ["a\u2028b", "c\x0bd", "e\x85f"]
