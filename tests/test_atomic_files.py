"""Files are complete or absent, also on a full disk, whichever library reports it."""

import errno
from pathlib import Path

import pytest

from signllm.atomic_files import atomic_file, atomic_write, report_full_disk
from signllm.errors import UsageError


def test_a_file_takes_its_place_at_the_end_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    atomic_write(path, "one")
    with atomic_file(path) as unfinished:
        unfinished.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), OSError(errno.EACCES, "x")])
def test_a_write_that_fails_keeps_the_old_file_and_the_error(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, "one")

    def fail() -> None:
        with atomic_file(path) as unfinished:
            unfinished.write_text("tw")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "message"), [("folder", "directory"), ("file/a", "directory|exists"), ("/proc/a", "")]
)
def test_an_unwritable_path_is_reported_before_anything_is_written(
    name: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=f"cannot be written: .*({message})") as raised,
        atomic_file(tmp_path / name),
    ):
        pytest.fail("it went on")
    assert raised.value.where == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_reported_for_any_library(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the disk is full") as message, report_full_disk(tmp_path / "a"):
        raise error
    assert message.value.where == tmp_path / "a"
    assert "free some space" in str(message.value.remedy)


def test_the_message_of_what_was_written_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such clip"), report_full_disk(tmp_path):
        raise UsageError("no such clip (os error 28)")
