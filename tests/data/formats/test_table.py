"""Tests of the table reader in three notations, and of invalid tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.data.annotations import read_annotations
from signllm.errors import UsageError


def table(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_real_table(realdata: Path) -> None:
    annotations = read_annotations("table", realdata / "clips.tsv")
    assert len(annotations.samples) == 11
    last = annotations.samples[-1]
    assert (last.id, last.signer, last.video.name) == ("0043626-2023.1.4", "dailymoth", "dailymoth.gif")
    assert last.text == "A major concern is landslides in mountainous areas."
    assert all(clip.video.is_file() for clip in annotations.samples)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", 'video\ttext\tsplit\nv/a.mp4\tshe said "hi, you\tdev\n'),
        ("a.csv", 'video,text,split\nv/a.mp4,"she said ""hi, you",dev\n'),
        ("b.csv", 'video\ttext\tsplit\nv/a.mp4\tshe said "hi, you\tdev\n'),
        ("a.jsonl", '{"video": "v/a.mp4", "text": "she said \\"hi, you", "split": "dev"}\n\n'),
        ("bom.tsv", '\ufeffvideo\ttext\tsplit\r\nv/a.mp4\t she  said "hi, you \tdev\r\n'),
    ],
)
def test_three_notations_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    (clip,) = read_annotations("table", table(tmp_path, name, text)).samples
    assert (clip.text, clip.split, clip.id) == ('she said "hi, you', "dev", "v/a")
    assert clip.video == tmp_path / "v/a.mp4"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "video\tsentence\na.mp4\tx\n", "columns are missing: text; the table has: video, sentence"),
        ("a.tsv", "", "columns are missing: video, text; the table has: none"),
        ("a.jsonl", '{"video": "a.mp4"', "line 1 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("a.xlsx", "video", "not a .tsv, .csv or .jsonl"),
    ],
)
def test_an_unreadable_table_is_refused_with_the_reason(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_annotations("table", table(tmp_path, name, text))


def test_a_table_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes("video\ttext\na.mp4\tgrün\n".encode("latin-1"))
    annotations = read_annotations("table", path)
    assert annotations.samples[0].text == "grün"
    assert "Windows-1252" in annotations.notices[0]
    path.write_bytes("video\ttext\na.mp4\tżółw\n".encode("cp1250"))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_annotations("table", path)


def test_rows_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    text = "video\ttext\na.mp4\tfine\nb.mp4\nc.mp4\tx\ty\n\ttext without video\n"
    annotations = read_annotations("table", table(tmp_path, "a.tsv", text))
    assert [clip.id for clip in annotations.samples] == ["a"]
    assert [entry.reason for entry in annotations.left_out] == [
        "line 3 has another number of fields than the header",
        "line 4 has another number of fields than the header",
        "line 5 names no video",
    ]


def test_rows_with_times_are_clips_of_a_recording(tmp_path: Path) -> None:
    rows = "long.mp4\ta\t1.5\t2.25\nlong.mp4\tb\t00:01:02.500\t\nlong.mp4\tc\t\t3\nshort.mp4\td\t\t\n"
    annotations = read_annotations("table", table(tmp_path, "a.tsv", "video\ttext\tstart_s\tend_s\n" + rows))
    assert [(clip.id, clip.time_span) for clip in annotations.samples] == [
        ("long-1.500-2.250", (1.5, 2.25)),
        ("long-62.500-end", (62.5, float("inf"))),
        ("long-0.000-3.000", (0, 3)),
        ("short", None),
    ]
    line = '{"video": "long.mp4", "text": "a", "start_s": 1.5, "end_s": null, "id": "x"}\n'
    (clip,) = read_annotations("table", table(tmp_path, "a.jsonl", line)).samples
    assert (clip.id, clip.start_s, clip.end_s) == ("x", 1.5, None)


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        ("2", "2", "line 2: the sample ends at 2 s, but starts at 2 s"),
        ("", "0", "line 2: the sample ends at 0 s, but starts at 0 s"),
        ("-1", "2", "line 2: '-1' is not a time in seconds"),
        ("soon", "2", "line 2: 'soon' is not a time in seconds"),
        ("nan", "2", "line 2: 'nan' is not a time in seconds"),
    ],
)
def test_times_that_cannot_be_are_left_out(tmp_path: Path, start: str, end: str, reason: str) -> None:
    text = f"video\ttext\tstart_s\tend_s\na.mp4\tx\t{start}\t{end}\n"
    (entry,) = read_annotations("table", table(tmp_path, "a.tsv", text)).left_out
    assert entry.reason == reason


def test_missing_table_and_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        read_annotations("table", tmp_path / "none.tsv")
    with pytest.raises(
        UsageError,
        match=r"unknown dataset format 'tabel'(.|\n)*phoenix2014t, csl-daily, .*table, folder",
    ):
        read_annotations("tabel", tmp_path)


def test_what_pandas_and_excel_quote_is_learnt_without_their_quotes(tmp_path: Path) -> None:
    text = 'video\ttext\na.mp4\t"He said ""hi"", twice"\nb.mp4\the said "hi" to\n'
    assert [clip.text for clip in read_annotations("table", table(tmp_path, "a.TSV", text)).samples] == [
        'He said "hi", twice',
        'he said "hi" to',
    ]
    text = ';Video ; TEXT;split;start_s;end_s\r\n0;a.mp4;"gut; sehr ""gut""";Val;1,5;2,25\r\n'
    (clip,) = read_annotations("table", table(tmp_path, "b.csv", text)).samples
    assert (clip.text, clip.split, clip.time_span) == ('gut; sehr "gut"', "dev", (1.5, 2.25))


def test_a_missing_quote_leaves_out_only_its_row(tmp_path: Path) -> None:
    rows = [f'v{number}.mp4,"sentence, {number}"' for number in range(1000)]
    rows[698] = 'v698.mp4,"he said hi'
    annotations = read_annotations("table", table(tmp_path, "a.csv", "\n".join(["video,text", *rows])))
    assert len(annotations.samples) == 999
    (entry,) = annotations.left_out
    assert (entry.id, entry.reason.split(" has ")[0]) == ("v698.mp4", "line 700")


def test_splits_of_the_field_and_missing_values(tmp_path: Path) -> None:
    text = "video,text,split,signer\na.mp4,x,valid,nan\nb.mp4,y,Training,\nc.mp4,z,extra,S1\n"
    annotations = read_annotations("table", table(tmp_path, "a.csv", text))
    assert [(clip.split, clip.signer) for clip in annotations.samples] == [
        ("dev", ""),
        ("train", ""),
        ("extra", "S1"),
    ]
    assert ["'valid' is dev" in annotations.notices[0], "'extra'" in annotations.notices[1]] == [True, True]


def test_texts_are_normalized_to_nfc(tmp_path: Path) -> None:
    text = "video,text\na.mp4,scho\u0308n\n"
    assert read_annotations("table", table(tmp_path, "a.csv", text)).samples[0].text == "schön"
