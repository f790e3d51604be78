"""Hazards of the real datasets that concern several packages, tested end to end.

Where the others are tests: names (1) in data/test_shards and formats/test_openasl, test_how2sign,
test_phoenix2014t; stray files, zero bytes, quotes and ``/1/`` (2) in formats/test_phoenix2014t and
data/test_frame_folder; the misnamed clip and the pickle (3) in formats/test_csl_daily, test_plain_pickle;
quotes, 195 words, missing clips (4) in formats/test_how2sign, first pts in test_pictures_of_any_kind;
spaces (5) in formats/test_openasl; official counts (6) in the formats, repeats in data/test_shard_inspection.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from signllm import cli
from signllm.data.loading.pipeline import DataConfig, Loader, VideoSource
from signllm.data.shards.index import ShardIndex
from signllm.data.video.decoding import encode_h264
from tests.data.conftest import drawn
from tests.models import parts

REAL = Path(__file__).resolve().parents[2] / "shared" / "realdata"
SHORTEST = {"how2sign": 5, "csl": 10, "phoenix": 16, "one": 1, "window": 13}
NAMES = ("-fZ__3MpJk_0-8-rgb_front", "Mci9oyb5V2E-00:00:05.333-00:00:11.166", "a/b__c.d")
TEXT = 'He says  "hi and goes.'


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_shortest_clips_reach_the_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A video shorter than a clip of 13 frames has at least one character."""
    rows = ["video\ttext"]
    for name, frames in SHORTEST.items():
        (tmp_path / f"{name}.mp4").write_bytes(encode_h264(drawn(frames), 25))
        rows.append(f"{name}.mp4\ta sentence")
    (tmp_path / "t.tsv").write_text("\n".join(rows) + "\n")
    run(capsys, "shard", "table", tmp_path / "t.tsv", tmp_path / "out")
    run(capsys, "shards", "verify", tmp_path / "out")
    split = ShardIndex(tmp_path / "out").split("train")
    loader = Loader(VideoSource(split, DataConfig(size=parts.SIZE, workers=0)), batch_size=5, epochs=1)
    (batch,) = loader
    assert dict(zip(batch.ids, batch.frame_counts.tolist(), strict=True)) == SHORTEST
    _, counts = parts.vq_sign().encode(batch.frames, batch.frame_counts)
    assert len(counts) == 5
    assert int(counts.min()) >= 1


def test_unusual_names_and_texts_pass_through_every_view(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["video\ttext\tid"]
    (tmp_path / "v.mp4").write_bytes(encode_h264(drawn(14), 25))
    texts = [TEXT, " ".join(["word"] * 195), f"  {TEXT} "]
    rows += [f"v.mp4\t{text}\t{name}" for name, text in zip(NAMES, texts, strict=True)]
    (tmp_path / "t.tsv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    run(capsys, "shard", "table", tmp_path / "t.tsv", out)
    info = json.loads(run(capsys, "shards", "info", out, "--json"))["splits"]["train"]
    assert (info["most_words"], info["distinct_texts"]) == (195, 2)
    run(capsys, "shards", "verify", out)
    run(capsys, "shards", "preview", out, tmp_path / "sheet.png")
    samples = ShardIndex(out).split("train").samples
    assert [sample.id for sample in samples] == list(NAMES)
    assert samples[0].text == samples[2].text == 'He says "hi and goes.'


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real clips are not there: {REAL}")
@pytest.mark.parametrize(
    ("format", "source", "frames"),
    [
        ("phoenix2014t", "PHOENIX-2014-T-release-v3/PHOENIX-2014-T", {"train": 2, "dev": 2, "test": 2}),
        ("table", "clips.tsv", {"train": None}),
    ],
)
def test_the_real_files_through_the_data_verbs(
    format: str,
    source: str,
    frames: dict[str, int | None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The small PHOENIX tree has one video of two frames in every split; the table has eleven videos."""
    out = tmp_path / "out"
    run(capsys, "shard", format, REAL / source, out, "--size", "96", "--workers", "2")
    splits = json.loads(run(capsys, "shards", "info", out, "--json"))["splits"]
    if format == "table":
        assert splits["train"]["samples"] == 11
    else:
        assert {name: (split["samples"], split["frames"]) for name, split in splits.items()} == {
            name: (1, count) for name, count in frames.items()
        }
    run(capsys, "shards", "verify", out, "--workers", "2")
    run(capsys, "shards", "preview", out, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
