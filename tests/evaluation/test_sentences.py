"""Files of sentences pair by line or by id, and refuse whatever could shift a pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.errors import UsageError
from signllm.evaluation.sentences import paired, read


def files(folder: Path, ours: str, theirs: str) -> tuple[Path, Path]:
    hypotheses, references = folder / "ours", folder / "theirs"
    hypotheses.write_bytes(ours.encode())
    references.write_bytes(theirs.encode())
    return hypotheses, references


def test_plain_lines_keep_empty_hypotheses_in_their_place(tmp_path: Path) -> None:
    assert paired(*files(tmp_path, "a\n\nc\n", "A\r\nB\r\nC")) == (["a", "", "c"], ["A", "B", "C"])


def test_ids_pair_whatever_the_order(tmp_path: Path) -> None:
    ours, theirs = "dev/2|zwei\n\ndev/1|eins\n", "\ufeffdev/1 | Eins\ndev/2|Zwei\n"
    assert paired(*files(tmp_path, ours, theirs)) == (["eins", "zwei"], ["Eins", "Zwei"])


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ("a\nb\n", "a\n", "2 hypotheses but 1 references"),
        ("1|a\n", "1|a\n2|b\n", "1 ids have no hypothesis: 2"),
        ("1|a\n2|b\n", "1|a\n", "1 ids have no reference: 2"),
        ("1|a\n1|b\n", "1|a\n", "the id '1' is there twice"),
        ("1|a\n", "a\n", "one file has ids"),
        ("1|a\n2 b\n", "1|a\n2|b\n", "1 fields where"),
        ("1|a\n", "number|video|translation\n1|v|a\n", "name the columns|3 fields"),
        ("1|a\n", "name|video|translation\n1|v\n", "head of the table has 3"),
        ("\n \n", "a\n", "holds no sentence"),
    ],
)
def test_what_could_shift_a_pair_is_refused(tmp_path: Path, ours: str, theirs: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        paired(*files(tmp_path, ours, theirs))
    assert raised.value.remedy
    assert str(tmp_path) in str(raised.value.where)


def test_unreadable_files_are_the_users_business(tmp_path: Path) -> None:
    hypotheses, references = files(tmp_path, "a", "a")
    with pytest.raises(UsageError, match="cannot read"):
        paired(tmp_path / "none", references)
    hypotheses.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        paired(hypotheses, references)


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
def test_kinds_of_files_with_ids(tmp_path: Path, suffix: str, text: str) -> None:
    references = tmp_path / f"references{suffix}"
    references.write_text(text, encoding="utf-8")
    assert read(references, "reference") == {"2": "zwei", "1": "eins"}


def test_a_run_is_scored_from_its_own_file(tmp_path: Path) -> None:
    file = tmp_path / "hypotheses.dev.jsonl"
    file.write_text('{"id": "a", "hypothesis": "es regnet", "reference": "es schneit"}\n', encoding="utf-8")
    assert paired(file, file) == (["es regnet"], ["es schneit"])
    file.write_text('{"id": "a", "hypothesis": "x"}\n[1]\n', encoding="utf-8")
    with pytest.raises(UsageError, match="no JSON object with an id and a hypothesis") as raised:
        read(file, "hypothesis")
    assert str(raised.value.where).endswith("line 2")
