"""Filming: real mp4 files and a table like anybody's, with the truth kept apart from both."""

import json
from pathlib import Path

import pytest

from signllm.data.annotations import FORMATS
from signllm.data.shards.index import ShardIndex
from signllm.data.video.decoding import decode_video
from signllm.demo.language import glosses, lexicon
from signllm.demo.studio import (
    MOST_VIDEOS,
    TABLE,
    StudioConfig,
    film,
    read_truth,
    split_sentences,
    takes,
)
from signllm.errors import UsageError
from tests.demo.conftest import FEW


def test_no_text_is_in_two_splits() -> None:
    splits = split_sentences(StudioConfig())
    texts = [sentence.text for spoken in splits.values() for sentence in spoken]
    assert [len(splits[split]) for split in ("train", "dev", "test")] == [800, 60, 100]
    assert len(set(texts)) == len(texts)


def test_a_larger_train_split_leaves_dev_and_test_as_they_are() -> None:
    small, large = split_sentences(StudioConfig(train=10)), split_sentences(StudioConfig(train=500))
    assert (small["dev"], small["test"]) == (large["dev"], large["test"])
    assert small["train"] == large["train"][:10]


def test_takes_are_planned_alike_each_time() -> None:
    assert list(takes(FEW)) == list(takes(FEW))
    assert len({take.seed for take in takes(StudioConfig())}) == 960


def test_every_video_decodes_to_the_frames_that_were_filmed(filmed: Path) -> None:
    signs = lexicon("easy")
    truths = read_truth(filmed)
    assert len(truths) == 13
    for truth in truths:
        frames = decode_video(filmed / "videos" / f"{truth['id']}.mp4")
        assert frames.shape[1:] == (48, 48, 3)
        # After the last unit the hand goes back to rest in four frames.
        assert len(frames) == truth["ends"][-1] + 4
        assert truth["units"] == [unit for gloss in truth["signs"] for unit in signs[gloss]]


def test_the_table_is_one_that_any_dataset_could_come_with(filmed: Path) -> None:
    annotations = FORMATS["table"](filmed / "videos" / TABLE)
    assert annotations.left_out == ()
    planned = {take.id: take for take in takes(FEW)}
    assert [clip.id for clip in annotations.samples] == list(planned)
    for clip in annotations.samples:
        take = planned[clip.id]
        assert (clip.text, clip.split, clip.signer) == (take.sentence.text, take.split, take.signer.name)
        assert clip.language == "English"
        assert clip.video.is_file()


def test_shards_hold_every_video_and_the_test_signer_in_test_only(filmed: Path) -> None:
    index = ShardIndex(filmed / "shards")
    sizes = {name: len(index.split(name)) for name in index.splits}
    assert sizes == {"train": 10, "dev": 1, "test": 2}
    signers = {name: {sample.signer for sample in index.split(name).samples} for name in sizes}
    assert signers["test"] == {"testsigner"}
    assert signers["dev"] == {"devsigner"}
    assert not signers["train"] & {"testsigner", "devsigner"}
    assert len(signers["train"]) == 9


def test_the_truth_reaches_neither_table_nor_shards(filmed: Path) -> None:
    """Only known members and fields are in the shards, and no text gives the signs' order away."""
    index = ShardIndex(filmed / "shards")
    for name in index.splits:
        split = index.split(name)
        for place, sample in enumerate(split.samples):
            members = split.read(place)
            assert set(members) == {"mp4", "txt", "json"}
            assert set(json.loads(members["json"])) & {"signs", "units", "starts", "ends"} == set()
            assert members["txt"].decode().strip() == sample.text
            assert members["mp4"] == (filmed / "videos" / f"{sample.id}.mp4").read_bytes()
    written = (filmed / "videos" / TABLE).read_text()
    written += "".join(path.read_text() for path in (filmed / "shards").glob("*.json"))
    for truth in read_truth(filmed):
        assert " ".join(truth["signs"]) not in written
        assert json.dumps(truth["signs"]) not in written
    assert written.splitlines()[0].split("\t") == ["id", "video", "text", "split", "language", "signer"]
    assert "unit" not in written
    assert set(glosses()) & set(written.split())  # the texts are there, so the search above could find signs


def test_the_table_comes_last_and_an_old_one_is_gone_while_filming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted film leaves no table, so nothing half-filmed can be sharded."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / TABLE).write_text("of an earlier film")
    (tmp_path / "truth.jsonl").mkdir()  # the truth cannot be written
    with pytest.raises(UsageError, match="cannot be written") as error:
        film(tmp_path, StudioConfig(train=1, dev=1, test=1), workers=1)
    assert error.value.where == tmp_path / "truth.jsonl"
    assert not (tmp_path / "videos" / TABLE).exists()


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"level": "nonsense"}, "easy, hard"),
        ({"seed": -1}, "0 or more"),
        ({"test": 0}, "1 or more"),
        ({"train": MOST_VIDEOS}, "at most"),
    ],
)
def test_what_cannot_be_filmed_is_refused_at_once(wrong: dict[str, int], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        StudioConfig(**wrong)  # type: ignore[arg-type]
