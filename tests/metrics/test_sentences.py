"""Files of sentences are paired by line or by id, and whatever could shift a pair is an error."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import pytest

from signllm.errors import UsageError
from signllm.metrics.sentences import read_pairs_with_ids, read_sentences


def read_pairs(hypotheses: Path, references: Path) -> tuple[list[str], list[str]]:
    _, hypothesis_texts, reference_texts = read_pairs_with_ids(hypotheses, references)
    return hypothesis_texts, reference_texts


def files(folder: Path, hypothesis_text: str, reference_text: str) -> tuple[Path, Path]:
    hypotheses, references = folder / "hypotheses", folder / "references"
    hypotheses.write_bytes(hypothesis_text.encode())
    references.write_bytes(reference_text.encode())
    return hypotheses, references


def test_plain_lines_keep_empty_hypotheses(tmp_path: Path) -> None:
    assert read_pairs(*files(tmp_path, "a\n\nc\n", "A\r\nB\r\nC")) == (["a", "", "c"], ["A", "B", "C"])


def test_ids_are_paired_in_any_order(tmp_path: Path) -> None:
    hypothesis_text, reference_text = "dev/2|zwei\n\ndev/1|eins\n", "\ufeffdev/1 | Eins\ndev/2|Zwei\n"
    assert read_pairs(*files(tmp_path, hypothesis_text, reference_text)) == (
        ["eins", "zwei"],
        ["Eins", "Zwei"],
    )


@pytest.mark.parametrize(
    ("hypothesis_text", "reference_text", "problem"),
    [
        ("a\nb\n", "a\n", "2 hypotheses but 1 references"),
        ("1|a\n", "1|a\n2|b\n", "1 ids have no hypothesis: 2"),
        ("1|a\n2|b\n", "1|a\n", "1 ids have no reference: 2"),
        ("1|a\n1|b\n", "1|a\n", "the id '1' occurs twice"),
        ("1|a\n", "a\n", "one file has ids"),
        ("1|a\n2 b\n", "1|a\n2|b\n", "1 fields where"),
        ("1|a\n", "number|video|translation\n1|v|a\n", "no column of ids|name the columns|3 fields"),
        ("1|a\n", "name|video|translation\n1|v\n", "number of fields"),
        ("\n \n", "a\n", "contains no sentence"),
    ],
)
def test_errors_that_could_shift_a_pair(
    tmp_path: Path, hypothesis_text: str, reference_text: str, problem: str
) -> None:
    with pytest.raises(UsageError, match=problem) as raised:
        read_pairs(*files(tmp_path, hypothesis_text, reference_text))
    assert raised.value.remedy
    assert str(tmp_path) in str(raised.value.where)


def test_unreadable_files_are_usage_errors(tmp_path: Path) -> None:
    hypotheses, references = files(tmp_path, "a", "a")
    with pytest.raises(UsageError, match="cannot read"):
        read_pairs(tmp_path / "none", references)
    hypotheses.write_bytes("żółw\n".encode("cp1250"))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_pairs(hypotheses, references)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("", "2|zwei\n1|eins|\n".replace("s|", "s")),
        (".tsv", "2\tzwei\n1\teins\n"),
        (".tsv", "video\ttext\tid\nb.mp4\tzwei\t2\na.mp4\teins\t1\n"),
        (".csv", 'name|video|orth|translation\n2|v|ZWEI "|zwei\n1|v|EINS|eins\n'),
        (".jsonl", '{"id": 2, "reference": "zwei", "hypothesis": "drei"}\n\n{"id": "1", "text": "eins"}\n'),
    ],
)
def test_formats_of_files_with_ids(tmp_path: Path, suffix: str, text: str) -> None:
    references = tmp_path / f"references{suffix}"
    references.write_text(text, encoding="utf-8")
    assert read_sentences(references, "reference") == {"2": "zwei", "1": "eins"}


def test_the_hypotheses_file_of_a_run_contains_both_sides(tmp_path: Path) -> None:
    file = tmp_path / "hypotheses.dev.jsonl"
    file.write_text('{"id": "a", "hypothesis": "es regnet", "reference": "es schneit"}\n', encoding="utf-8")
    assert read_pairs(file, file) == (["es regnet"], ["es schneit"])
    file.write_text('{"id": "a", "hypothesis": "x"}\n[1]\n', encoding="utf-8")
    with pytest.raises(UsageError, match="no JSON object with an id and a hypothesis") as raised:
        read_sentences(file, "hypothesis")
    assert str(raised.value.where).endswith("line 2")


IDS_AND_TEXTS = [("a/1", 'er sagt "ja", dann'), ("a/2", "es regnet")]


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.tsv", "a.TSV", "a.txt"])
@pytest.mark.parametrize("header", [("id", "text"), ("ID", "Hypothesis"), ("", "name", "translation")])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_are_read_by_their_columns(
    tmp_path: Path, name: str, header: tuple[str, ...], delimiter: str
) -> None:
    path = tmp_path / name
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows([("0", *row)[-len(header) :] for row in IDS_AND_TEXTS])
    assert read_sentences(path, "hypothesis") == dict(IDS_AND_TEXTS)


def test_the_files_of_how2sign_and_openasl_are_references(tmp_path: Path) -> None:
    path = tmp_path / "how2sign_realigned_test.csv"
    columns = "VIDEO_ID\tVIDEO_NAME\tSENTENCE_ID\tSENTENCE_NAME\tSTART_REALIGNED\tEND_REALIGNED\tSENTENCE"
    path.write_text(f'{columns}\n-f\t-f-8\t-f_0\t-f_0-8-rgb_front\t1.5\t2.5\t"Hi, there", he says.\n')
    assert read_sentences(path, "reference") == {"-f_0-8-rgb_front": '"Hi, there", he says.'}
    path.write_text(
        "vid\tyid\tstart\tend\traw-text\ttokenized-text\tgloss\tsplit\nv:1\ty\t0\t1\tHi.\thi .\t\ttest\n"
    )
    assert read_sentences(path, "reference") == {"v:1": "Hi."}


def test_a_table_without_ids_skips_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(',hypothesis\n0,"a, b"\n1,c\n')
    (tmp_path / "b.csv").write_text("reference\na b\nc\n")
    assert read_pairs(tmp_path / "a.csv", tmp_path / "b.csv") == (["a, b", "c"], ["a b", "c"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "key1,caption\na,b\n", "names no column of sentences"),
        ("a.csv", "a/1,es regnet\na/2,es schneit\n", "names no column of sentences"),
        ("a.csv", "video,text\na.mp4,b\n", "no column of ids"),
        ("a.csv", "id,text,translation\na,b,c\n", "several columns may contain the sentences"),
        ("a.tsv", "id\tcaption\na\tb\n", "not clear whether the first line names columns"),
        ("a", "name|orth\na|b\n", "not clear whether the first line names columns"),
        ("a.csv", 'id,text\na,"b\nc,d\n', "quote"),
    ],
)
def test_ambiguous_tables_are_rejected(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message) as raised:
        read_sentences(tmp_path / name, "hypothesis")
    assert raised.value.remedy
    assert str(tmp_path) in str(raised.value.where)


def test_ids_match_in_any_unicode_form(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"id,text\n{unicodedata.normalize('NFD', 'Grün')},x\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("Grün|y\n", encoding="utf-16")
    assert read_pairs(tmp_path / "a.csv", tmp_path / "b.txt") == (["x"], ["y"])


def test_another_encoding_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_bytes("id;text\r\n1;grün\r\n".encode("cp1252"))
    assert read_sentences(tmp_path / "a.csv", "reference") == {"1": "grün"}
    assert "Windows-1252" in caplog.text
