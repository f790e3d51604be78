"""Files of sentences pair by line or by id, and refuse whatever could shift a pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.errors import UsageError
from signllm.evaluation.sentences import paired


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
        ("1|a\n", "a\n", "one file has id"),
        ("1|a\n2 b\n", "1|a\n2|b\n", "1 fields where"),
        ("1|a\n", "name|video|translation\n1|v|a\n", "cut -d"),
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
