"""Tests of reading tables: separators, quotes, line ends, columns, and invalid rows."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pytest

from signllm.data.tables import read_table
from signllm.errors import UsageError

TEXTS = [
    'He said "hi", twice',
    '"Quoted", he says.',
    '"All of it is quoted, too"',
    '"Hello."',
    "two\nlines, and more",
    "tab\tinside",
    "semi;colon",
    "5\" tall, 6' wide",
    "bar|bar",
    "plain",
    '""',
    " outer spaces ",
]


def read(path: Path, known: tuple[str, ...] = ("id", "split")) -> list[dict[str, str]]:
    return [dict(row.cells) for row in read_table(path, ("text",), known=known, remedy="").rows]


def problems(path: Path) -> list[str]:
    return [row.problem for row in read_table(path, ("text",), known=("id",), remedy="").rows if row.problem]


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("columns", [("id", "text"), ("text", "id"), ("id", "text", "split")])
def test_what_a_writer_of_quotes_wrote_comes_back(
    tmp_path: Path, delimiter: str, quoting: int, line_end: str, columns: tuple[str, ...]
) -> None:
    """The ``to_csv`` of pandas uses this writer."""
    target = io.StringIO()
    # Python's writer does not quote a line feed where lines end otherwise.
    texts = [text for text in TEXTS if line_end != "\r" or "\n" not in text]
    rows = [{"id": str(number), "text": text, "split": "dev"} for number, text in enumerate(texts)]
    writer = csv.DictWriter(
        target, columns, delimiter=delimiter, quoting=quoting, lineterminator=line_end, extrasaction="ignore"
    )
    writer.writeheader()
    writer.writerows(rows)
    path = tmp_path / "a.csv"
    path.write_bytes(target.getvalue().encode())
    assert [row["text"] for row in read(path)] == texts


def test_random_tables_come_back(tmp_path: Path) -> None:
    """Any cells between commas or semicolons are read back, with the characters that affect parsing."""
    drawn = random.Random(0)
    for number in range(100):
        delimiter = drawn.choice(",;")
        texts = ["".join(drawn.choices('ab ",;\t|', k=drawn.randint(1, 12))) for _ in range(8)]
        path = tmp_path / f"{number}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(("id", "text", "split"))
            writer.writerows((f"v{i}", text, "dev") for i, text in enumerate(texts))
        rows = read_table(path, ("text",), known=("id", "split"), remedy="").rows
        assert [row["text"] for row in rows] == texts, (delimiter, texts)


def test_bare_quotes_between_tabs_are_characters(tmp_path: Path) -> None:
    """How2Sign, OpenASL and PHOENIX-2014T never quote cells."""
    texts = [
        'He says "hi and goes.',
        '"Quoted", he says.',
        '"He said hi',
        'and left."',
        '"Hello, there."',
        "a, b",
    ]
    path = tmp_path / "a.csv"
    for delimiter in "\t|":
        rows = [delimiter.join((f"v{number}", "x", text)) for number, text in enumerate(texts)]
        path.write_text("\n".join([f"id{delimiter}name{delimiter}text", *rows]) + "\n")
        assert [row["text"] for row in read(path)] == texts


@pytest.mark.parametrize("bad", ['v700,"he said hi', 'v700,"he said "hi" twice"', 'v700,"he said \\"hi\\""'])
@pytest.mark.parametrize("others", ["plain text", '"hello, ""world"""', '"two\nlines, yes, indeed"'])
def test_a_missing_quote_affects_only_its_row(tmp_path: Path, bad: str, others: str) -> None:
    rows = [f"v{number},{others}" for number in range(1000)]
    rows[700] = bad
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["id,text", *rows]) + "\n")
    table = read_table(path, ("text",), known=("id",), remedy="")
    line = 2 + 700 * (1 + others.count("\n"))
    assert [row.line for row in table.rows if row.problem] == [line]
    assert f"line {line} " in next(row.problem for row in table.rows if row.problem)
    assert [row["id"] for row in table.rows if not row.problem] == [f"v{n}" for n in range(1000) if n != 700]


def test_two_lost_quotes_swallow_no_rows_between_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for between, ids in (("2,fine\n3,fine too\n", ["2", "3", "4", "5"]), ("", ["4", "5"])):
        path.write_text(f'id,text\n1,"He said hi\n{between}4,and left."\n5,end\n')
        table = read_table(path, ("text",), known=("id",), remedy="")
        assert [row.line for row in table.rows if row.problem] == [2]
        assert [row["id"] for row in table.rows if not row.problem] == ids


@pytest.mark.parametrize(
    "text",
    [
        "ID,Text\nx,y\n",
        " id ; TEXT \nx;y\n",
        "\ufeffid\ttext\r\nx\ty\r\n",
        "sep=;\r\nid;text\r\nx;y\r\n",
        ",id,text\n0,x,y\n",
        "id,text,,\nx,y,,\n,,,\n\n   \n",
        "id,text\nx,y,,,\n",
        "\n\nid|text\rx|y\r",
        'id, text\nx, "y"\n',
    ],
)
def test_spellings_of_the_same_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    (row,) = read(path)
    assert (row["id"], row["text"].strip()) == ("x", "y")


def test_rows_of_another_width_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("id\ttext\na\tfine\nb\n\nc\tx\ty\n")
    assert problems(path) == [
        "line 3 has another number of fields than the header",
        "line 5 has another number of fields than the header",
    ]


def test_a_damaged_row_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes("id\ttext\na\tschön\nb\tübel\n".encode() + b"c\tgr\xfcn\n")
    assert problems(path) == ["line 4 is not UTF-8"]


def test_json_lines_lose_only_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.JSONL"
    lines = [json.dumps({"Text": "x", "id": 5}), "{bad", "[1]", "", json.dumps({"text": None, "id": "b"})]
    path.write_text("\r\n".join(lines))
    table = read_table(path, ("text",), remedy="")
    assert [(row.line, row["id"], row["text"], bool(row.problem)) for row in table.rows] == [
        (1, "5", "x", False),
        (2, "", "", True),
        (3, "", "", True),
        (5, "b", "", False),
    ]


def test_columns_that_are_missing_or_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,caption\nx,y\n")
    with pytest.raises(UsageError, match="columns are missing: text; the table has: id, caption"):
        read(path)
    path.write_text("id,text,Text\nx,y,z\n")
    with pytest.raises(UsageError, match="two columns have the name text"):
        read(path)
