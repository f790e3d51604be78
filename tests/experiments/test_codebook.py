"""The tool on a run of the real stages: the picture shows the videos' own frames, the counts are right."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from signllm.cra.word_codebook import WordCodebook
from signllm.data.shards.index import ShardIndex
from signllm.data.video.stored_frames import decode_stored_frames
from signllm.errors import UsageError
from signllm.experiments.codebook import draw_codebook, format_summary, inspect_codebook
from signllm.experiments.codebook_usage import count_usage
from signllm.experiments.contact_sheet import GAP, HEAD, Clip, Entry, Section, lay_out_page
from signllm.experiments.encoded_split import load_or_encode_split
from signllm.reporting.video_frames import THUMBNAIL_HEIGHT
from tests import warm
from tests.inference import trained
from tests.models import parts
from tests.stages import path

CHECKOUT = Path(__file__).parents[2]


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [warm.python(), str(CHECKOUT / "tools" / "inspect_codebook"), *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)


def enlarge(frame: np.ndarray) -> np.ndarray:
    side = (THUMBNAIL_HEIGHT, THUMBNAIL_HEIGHT)
    return np.asarray(Image.fromarray(frame).resize(side, Image.Resampling.LANCZOS))


def test_the_tool_draws_prints_and_writes_the_same_numbers(composed: Path, tmp_path: Path) -> None:
    sheet, file = tmp_path / "new" / "sheet.png", tmp_path / "usage.json"
    done = run_tool(
        "--run", composed / "pretrain", "--data", composed / "shards", "--out", sheet, "--json", file
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    assert done.stdout.splitlines() == format_summary(record)
    encoded = load_or_encode_split(composed / "pretrain", composed / "shards")
    counts = Counter(int(c) for sequence in encoded.sequences for c in sequence)
    assert record["videos"] == len(path.LENGTHS["train"])
    assert record["read"] == "recorded by compose"
    assert (
        record["characters"]["read"]
        == counts.total()
        == sum((n - 13) // 4 + 1 for n in path.LENGTHS["train"])
    )
    assert record["characters"]["codes_used"] == len(counts)
    assert record["characters"]["dead"] == [c for c in range(encoded.words.codes) if c not in counts]
    assert {item["id"]: item["count"] for item in record["most_used_characters"]} == counts
    with Image.open(sheet) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")


@pytest.mark.parametrize("split", ["train", "dev"])
def test_the_sheet_shows_the_frames_that_characters_and_words_are_read_from(
    split: str, composed: Path, tmp_path: Path
) -> None:
    encoded = load_or_encode_split(composed / "pretrain", composed / "shards", split)
    assert encoded.is_recorded == (split == "train")
    usage = count_usage(encoded.words, encoded.sequences, examples=2)
    page = draw_codebook(encoded, usage, tmp_path / "sheet.png", top=8, title="characters")
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert picture.shape == (page.height, page.width, 3)
    videos = ShardIndex(composed / "shards").split(split)
    cells = {cell.entry.name: cell for cell in page.cells}
    assert {f"{c}" for c in np.flatnonzero(usage.characters)} <= cells.keys()
    assert {f"w{w}" for w in usage.most_used_words(8)} == {name for name in cells if name.startswith("w")}
    for code in np.flatnonzero(usage.characters).tolist():
        cell, example = cells[str(code)], usage.examples[code][0]
        assert encoded.sequences[example.video][example.start] == code
        frames = decode_stored_frames(videos.read(encoded.places[example.video]))
        for column, frame in enumerate(range(4 * example.start, 4 * example.start + 13, 4)):
            x, y = cell.x + column * (THUMBNAIL_HEIGHT + GAP), cell.y + HEAD
            drawn = picture[y : y + THUMBNAIL_HEIGHT, x : x + THUMBNAIL_HEIGHT]
            assert np.array_equal(drawn, enlarge(frames[frame]))
        label = picture[cell.y : cell.y + HEAD - 12, cell.x : cell.x + cell.width]
        assert (label.min(), label.max()) == (0, 255)  # black on white
    for cell in page.cells:
        if cell.entry.name.startswith("w"):
            first, last = cell.entry.clips[0].frames[0], cell.entry.clips[0].frames[-1]
            assert (first % 4, (last - 12) % 4) == (0, 0)
            assert last - first >= 12


def test_another_split_is_encoded_as_compose_would(composed: Path) -> None:
    run, shards = composed / "pretrain", composed / "shards"
    dev = load_or_encode_split(run, shards, "dev")
    assert [len(sequence) for sequence in dev.sequences] == [(n - 13) // 4 + 1 for n in path.LENGTHS["dev"]]
    assert (dev.stage, dev.is_recorded, dev.codebook_moved) == ("pretrain", False, False)


def test_a_fine_tuned_run_is_encoded_by_its_own_encoder(tmp_path: Path) -> None:
    trained.write_shards(tmp_path)
    parts.save_language_model(tmp_path / "llm")
    run = trained.write_run(tmp_path / "run", tmp_path / "llm")
    shutil.rmtree(tmp_path / "llm")  # inspection never loads the language model
    sheet = tmp_path / "sheet.png"
    record = inspect_codebook(run, tmp_path / "shards", split="test", top=4, examples=2, out=sheet)
    assert (record["stage"], record["read"]) == ("finetune", "encoded now")
    assert record["codebook"] == "moved since its words were composed"  # write_run replaces the codebook
    frames = [min(n, trained.MAX_FRAMES) for n in trained.LENGTHS]
    assert record["characters"]["read"] == sum((n - 13) // 4 + 1 for n in frames)
    assert len(record["most_used_words"]) == 4
    assert Image.open(sheet).width >= 1800


def test_a_run_without_words(composed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(composed / "pretrain", tmp_path / "run"))
    (run / "words.json").unlink()
    done = run_tool("--run", run, "--data", composed / "shards", "--out", tmp_path / "sheet.png")
    assert done.returncode == 2
    assert "the word codebook is missing" in done.stderr
    assert "signllm compose" in done.stderr
    assert not (tmp_path / "sheet.png").exists()


def test_shards_of_other_videos(composed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path, "LENGTHS", {"train": (41, 29, 37, 33, 53)})
    other = path.write_videos(tmp_path)
    with pytest.raises(UsageError, match=r"1 of 5 do not fit, first train/4, which has 11 characters, not 9"):
        inspect_codebook(composed / "pretrain", other)
    monkeypatch.setattr(path, "LENGTHS", {"train": (41, 29)})
    fewer = path.write_videos(tmp_path / "fewer")
    with pytest.raises(UsageError, match=r"3 of 5 do not fit, first train/\d, which is not there"):
        inspect_codebook(composed / "pretrain", fewer)


def test_words_of_another_codebook(composed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(composed / "pretrain", tmp_path / "run"))
    replace(WordCodebook.load(run), codebook="0123456789abcdef").save(run)
    for split in ("train", "dev"):
        with pytest.raises(UsageError, match="0123456789abcdef"):
            inspect_codebook(run, composed / "shards", split=split)


@pytest.mark.parametrize("wrong", [{"top": 0}, {"top": 257}, {"examples": 0}, {"split": "nowhere"}])
def test_a_wrong_value_is_reported(wrong: dict[str, object], composed: Path) -> None:
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        inspect_codebook(composed / "pretrain", composed / "shards", **wrong)  # type: ignore[arg-type]


def test_the_help_has_examples() -> None:
    done = run_tool("--help")
    assert done.returncode == 0
    assert "tools/inspect_codebook --run" in done.stdout


def test_cells_never_overlap_for_any_aspect_ratio() -> None:
    entry = Entry(name="1", count=1, share=0.5, clips=(Clip(video=0, frames=(0, 1, 2)),) * 2)
    sections = [Section(title="t", hint="", frames=3, entries=(entry,) * 7)]
    for thumbnail in (40, 96, 300, 1200):
        page = lay_out_page(sections, title_lines=2, thumbnail=thumbnail)
        boxes = [(c.x, c.y, c.x + c.width, c.y + HEAD + 2 * THUMBNAIL_HEIGHT) for c in page.cells]
        assert all(right <= page.width and bottom <= page.height for _, _, right, bottom in boxes)
        for number, (left, top, right, bottom) in enumerate(boxes):
            for x, y, x_end, y_end in boxes[:number]:
                assert x_end <= left or right <= x or y_end <= top or bottom <= y


def test_four_characters_or_three_words_fit_side_by_side_for_square_frames() -> None:
    clips = (Clip(video=0, frames=(0,)),)
    entries = tuple(Entry(name=str(n), count=1, share=0.5, clips=clips) for n in range(9))
    sections = [Section(title="t", hint="", frames=frames, entries=entries) for frames in (4, 6)]
    page = lay_out_page(sections, title_lines=2, thumbnail=THUMBNAIL_HEIGHT)
    assert [len({cell.x for cell in part}) for part in (page.cells[:9], page.cells[9:])] == [4, 3]
