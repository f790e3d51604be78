"""Tests of the validation of the JSON next to tars, with the findings of the fuzzer as examples."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from signllm.data.annotations import read_annotations
from signllm.data.formats.plain_pickle import read_plain_pickle
from signllm.data.formats.video_tree import VideoTree
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.sample_encoding import EncodeConfig, encode_sample
from signllm.data.shards.shard_inspection import summarize_shards, verify_shards
from signllm.data.shards.tar import list_tar_members
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, LeftOutSample, SourceSample
from signllm.errors import UsageError

Maker = Callable[..., Annotations]


@pytest.fixture
def shards(make_clips: Maker, tmp_path: Path) -> Path:
    write_shards(make_clips(3), tmp_path / "shards", ShardConfig(encode="copy", show_progress=False))
    return tmp_path / "shards"


def change(path: Path, *keys: Any, to: Any) -> None:
    value = holder = json.loads(path.read_bytes())
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = to
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("tar",), "../../etc/passwd"),
        (("size_bytes",), -1),
        (("clips",), 0),
        (("samples",), []),
        (("samples", 0, "key"), "../x"),
        (("samples", 0, "frames"), 10**9),
        (("samples", 0, "fps"), 0),
        (("samples", 0, "fps"), float("nan")),
        (("samples", 0, "width"), 100_000_000),
        (("samples", 0, "text"), None),
        (("samples", 0, "members", "mp4"), [-512, 100]),
        (("samples", 0, "members", "mp4"), [0, 2**62]),
        (("samples", 0, "members", "mp4"), ["0", "9"]),
        (("samples", 0, "members"), {"mp4": [0, 5]}),
        (("left_out",), [{"id": 1}]),
    ],
    ids=str,
)
def test_an_index_that_leads_astray_is_no_index(shards: Path, keys: tuple[Any, ...], value: Any) -> None:
    change(shards / "train-000000.json", *keys, to=value)
    with pytest.raises(UsageError, match="a shard is missing, incomplete, or not the one of the manifest"):
        ShardIndex(shards).split("train")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("splits", "train", "shards"), []),
        (("splits", "train", "shards", 0, "tar"), "../train-000000.tar"),
        (("splits", "train", "shards", 0, "index"), "/etc/passwd"),
        (("splits", "train", "shards", 0, "samples"), "3"),
        (("splits", "../x"), {"shards": []}),
        (("made",), None),
        (("left_out",), [[]]),
    ],
    ids=str,
)
def test_a_damaged_manifest_is_reported(shards: Path, keys: tuple[Any, ...], value: Any) -> None:
    change(shards / "manifest.json", *keys, to=value)
    with pytest.raises(UsageError, match="manifest is damaged"):
        summarize_shards(shards)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": NaN}', "9" * 9000, "null"])
def test_json_of_another_format_is_refused(shards: Path, text: str) -> None:
    (shards / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match=r"the manifest cannot be read|not a manifest"):
        ShardIndex(shards)


@pytest.mark.parametrize("size", [b"\xff" * 10 + b"\xfe\0", b"\x80" + b"\xff" * 11, b"77777777777\0"])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_a_tar_that_declares_absurd_sizes_ends_quickly(shards: Path, size: bytes, kind: bytes) -> None:
    path = shards / "train-000000.tar"
    header = bytearray(path.read_bytes()[:512])
    header[124:136], header[156:157], header[148:156] = size, kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + path.read_bytes()[512:])
    with pytest.raises(tarfile.TarError):
        list_tar_members(path)


def test_members_that_differ_from_the_index_are_detected(shards: Path, make_clips: Maker) -> None:
    """An index with correct checksums may contain byte ranges of other members."""
    members = json.loads((shards / "train-000000.json").read_bytes())["samples"][1]["members"]
    change(shards / "train-000000.json", "samples", 0, "members", to=members)
    with pytest.raises(UsageError, match="its members are not those of the index"):
        verify_shards(shards, decode=False)


def test_names_that_cannot_be_written_are_left_out(tmp_path: Path) -> None:
    rows = [{"video": "v.mp4", "text": "half \ud800"}, {"video": "a\0b", "text": "t"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = read_annotations("table", tmp_path / "t.jsonl")
    assert result.samples == ()
    assert [entry.reason.split(",")[0] for entry in result.left_out] == [
        "its name or its text is not UTF-8"
    ] * 2


def test_a_release_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "openasl-v1.0.tsv").write_bytes("vid\tyid\nżółw\tx\n".encode("cp1250"))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_annotations("openasl", tmp_path)


def test_a_pickle_with_nested_tuples_as_keys_does_not_overflow_the_stack(tmp_path: Path) -> None:
    (tmp_path / "p.pkl").write_bytes(b"\x80\x04})" + b"\x85" * 300_000 + b"K\x01s.")
    with pytest.raises(UsageError, match="a key is a tuple"):
        read_plain_pickle(tmp_path / "p.pkl")


def test_links_in_circles_and_pipes_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("one", "two"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    os.mkfifo(tmp_path / "v.mp4")
    pipe = VideoTree(tmp_path).find("v")
    assert pipe == tmp_path / "v.mp4"
    left_out = encode_sample(SourceSample(id="c", video=pipe, text="t", split="train"), EncodeConfig())
    assert left_out == LeftOutSample(id="c", split="train", reason="v.mp4 is not a regular file")
