"""Bad input through the real command line: one message, its exit code, nothing that a later verb would trust.

What the rooms' own tests cover (each kind of damage to each file) is not repeated: here are the journeys a
user takes, and after each failure the next command.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from signllm import cli
from signllm.data.video.decoding import encode_h264
from signllm.training.checkpoint import last_checkpoint, load_weights

Refused = Callable[..., str]
FullDisk = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command line that must fail, check the form of its message, and return the message."""

    def run(*arguments: str | Path, expected: str, code: int = 2) -> str:
        capsys.readouterr()
        try:
            ended = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            ended = int(end.code or 0)
        out, err = capsys.readouterr()
        assert (ended, out) == (code, ""), err
        assert expected in " ".join(err.replace("│", " ").split())
        assert "Traceback" not in err
        assert err.count("signllm: ") <= 1
        if "signllm: " in err:  # ours; options are refused by tyro in a box of its own
            message = err[err.index("signllm: ") :]
            assert "  where:  " in message
            assert "  remedy: " in message
        return err

    return run


@pytest.fixture
def full_disk(tmp_path: Path) -> FullDisk:
    """Make a folder appear to lie on a disk with this number of free bytes.

    Only root may mount one; elsewhere no file may grow larger than ``largest`` (by default that many
    bytes): only the number of the system's error differs.
    """

    @contextlib.contextmanager
    def filled(folder: Path, free_bytes: int, largest: int | None = None) -> Iterator[None]:
        kept = tmp_path / "kept"
        folder.mkdir(exist_ok=True)
        shutil.copytree(folder, kept)
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        mounted = os.getuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if mounted:
            shutil.copytree(kept, folder, dirs_exist_ok=True)
            (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free - free_bytes))
        else:
            limit = free_bytes if largest is None else largest
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            if mounted:
                (folder / "filler").unlink()
                shutil.rmtree(kept)
                shutil.copytree(folder, kept)
                subprocess.run(["umount", str(folder)], check=True)
                shutil.rmtree(folder)
                shutil.copytree(kept, folder)
            shutil.rmtree(kept)

    return filled


def table(folder: Path, rows: list[tuple[str, str]], columns: str = "video\ttext") -> Path:
    """Write videos, ``good`` or unusable ones, and the table that names them."""
    folder.mkdir(exist_ok=True)
    lines = [columns]
    for number, (kind, text) in enumerate(rows):
        video = folder / f"{number}.mp4"
        if kind == "good":
            frames = np.full((14, 32, 32, 3), 20 * number, np.uint8)
            frames[:, number : number + 8] = 240
            video.write_bytes(encode_h264(frames, 25.0))
        elif kind == "noise":
            video.write_bytes(np.random.default_rng(number).bytes(3000))
        lines.append(f"{video.name}\t{text}")
    (folder / "clips.tsv").write_text("\n".join(lines) + "\n")
    return folder / "clips.tsv"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("missing", "rain"), "the video is missing"),
        (("noise", "rain"), "not a video that FFmpeg can decode"),
        (("good", ""), "the text is empty"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_a_clip_that_cannot_be_used_is_named_and_no_stage_trusts_what_was_begun(
    row: tuple[str, str], message: str, refused: Refused, tmp_path: Path
) -> None:
    source, shards, run = table(tmp_path / "in", [("good", "sun"), row]), tmp_path / "shards", tmp_path / "r"
    refused("shard", "table", source, shards, expected=message)
    refused("shards", "verify", shards, expected="no finished shards")
    refused("pretrain", "tiny", "--data", shards, "--run", run, expected="no finished shards")
    assert not run.exists()
    assert cli.main(["shard", "table", str(source), str(shards), "--max-bad", "1"]) == 0
    assert json.loads((shards / "manifest.json").read_text())["left_out"][0]["id"] == "1"
    assert cli.main(["shards", "verify", str(shards)]) == 0


@pytest.mark.parametrize(
    ("source", "message"), [("nowhere.tsv", "no such file or folder"), ("clips.tsv", "text")]
)
def test_a_dataset_that_is_not_there_or_lacks_columns_leaves_nothing(
    source: str, message: str, refused: Refused, tmp_path: Path
) -> None:
    table(tmp_path / "in", [("good", "sun")], columns="video\tsentence")
    err = refused("shard", "table", tmp_path / "in" / source, tmp_path / "shards", expected=message)
    assert source in err
    assert not (tmp_path / "shards").exists()


@pytest.mark.usefixtures("tiny")
def test_each_verb_names_the_stage_of_a_run_that_is_not_its_own(
    refused: Refused, composed: Path, tmp_path: Path
) -> None:
    pretrained, shards, video = composed / "pretrain", composed / "shards", tmp_path / "v.mp4"
    before = {file: file.stat().st_mtime_ns for file in pretrained.rglob("*")}
    other = "run of pretrain, not of finetune"
    stage3 = ("finetune", "tiny", "--data", shards, "--init", pretrained)
    refused(*stage3, "--run", pretrained, expected=other)
    refused("evaluate", "--run", pretrained, "--data", shards, expected=other)
    refused("translate", "--run", pretrained, video, expected=other)
    for missing in (
        ("compose", "tiny", "--data", shards, "--run", tmp_path / "none"),
        ("finetune", "tiny", "--data", shards, "--init", tmp_path / "none", "--run", tmp_path / "new"),
        ("evaluate", "--data", shards, "--run", tmp_path / "none"),
        ("translate", "--run", tmp_path / "none", video),
    ):
        refused(*missing, expected="not a run folder")
    assert {file: file.stat().st_mtime_ns for file in pretrained.rglob("*")} == before
    assert not (tmp_path / "new").exists()


def _edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"format": 99, "signllm": "9.0"}, "written by signllm 9.0"),
        ("checkpoints/*/state.json", {"version": 99}, "version 99"),
        ("words.json", {"version": 99}, "not of version 1"),
        ("words.json", {"codebook": "0" * 16}, "does not fit"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_a_run_of_another_version_or_with_a_foreign_codebook_starts_no_stage_3(
    file: str, changes: dict[str, Any], message: str, refused: Refused, composed: Path, tmp_path: Path
) -> None:
    init, run = tmp_path / "init", tmp_path / "run"
    shutil.copytree(composed / "pretrain", init)
    (edited,) = init.glob(file)
    _edited(edited, **changes)
    for complete in init.glob("checkpoints/*/COMPLETE"):
        content = edited.read_bytes()
        full = {edited.name: {"bytes": len(content), "crc32": zlib.crc32(content)}}
        _edited(complete, **(full if edited.name in json.loads(complete.read_text()) else {}))
    refused("finetune", "tiny", "--data", composed / "shards", "--init", init, "--run", run, expected=message)
    assert not run.exists()


@pytest.mark.usefixtures("tiny")
def test_a_language_model_that_is_missing_leaves_a_run_that_can_be_begun_again(
    refused: Refused, composed: Path, tmp_path: Path
) -> None:
    run, shards = tmp_path / "run", composed / "shards"
    stage3 = ("finetune", "tiny", "--data", shards, "--init", composed / "pretrain", "--run", run)
    model = "--llm"
    refused(*stage3, model, tmp_path / "none", expected="there is no language model")
    assert not run.exists(), "nothing is half-written"
    refused("evaluate", "--run", run, "--data", shards, "--split", "dev", expected="has no config.json")
    option, zero3 = "--sign-llm.language-model.", ("--training.deepspeed", "zero3")
    refused(
        *stage3,
        f"{option}quantize",
        "4bit",
        *zero3,
        expected="ZeRO-3 cannot partition a quantized language model",
    )
    refused(*stage3, f"{option}attention", "flash_attention_2", expected="leave the option out: torch's SDPA")
    # The right path goes into the same folder; a wrong split and a missing video follow it.
    assert cli.main([str(word) for word in (*stage3, model, composed / "llm", "--training.epochs", "3")]) == 0
    refused("evaluate", "--run", run, "--data", shards, "--split", "tset", expected="dev")
    assert not list(run.glob("scores*"))
    refused("translate", "--run", run, tmp_path / "none.mp4", expected="there is no such video")
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 99)
    refused("translate", "--run", run, tmp_path / "noise.mp4", expected="the video cannot be read")


@pytest.mark.usefixtures("tiny")
def test_a_disk_that_fills_up_during_training_leaves_no_checkpoint_and_training_continues(
    refused: Refused, full_disk: FullDisk, composed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stage1 = ("pretrain", "tiny", "--data", composed / "shards", "--run", run)
    with full_disk(run, 3 * 4096):
        refused(*stage1, expected="the disk is full: no checkpoint of step 4 was written")
        assert last_checkpoint(run) is None
        refused(
            "compose", "tiny", "--data", composed / "shards", "--run", run, expected="no complete checkpoint"
        )
    assert not [file for file in run.rglob("*") if "part" in file.suffix]
    assert cli.main([str(word) for word in stage1]) == 0
    item, other = load_weights(run), load_weights(composed / "pretrain")
    assert all(np.array_equal(tensor, other[name]) for name, tensor in item.items())


@pytest.mark.usefixtures("tiny")
def test_a_disk_that_fills_up_while_composing_leaves_no_words(
    refused: Refused, full_disk: FullDisk, composed: Path, tmp_path: Path
) -> None:
    run, shards = tmp_path / "init", composed / "shards"
    shutil.copytree(composed / "pretrain", run)
    for file in ("words.json", "words.png", "words.safetensors", "characters/train-000000.safetensors"):
        (run / file).unlink()
    compose = ("compose", "tiny", "--data", shards, "--run", run)
    stage3 = ("finetune", "tiny", "--data", shards, "--init", run, "--run", tmp_path / "run")
    with full_disk(run, 0):
        refused(*compose, expected="the disk is full")
        refused(*stage3, expected="the word codebook is missing")
    assert not list(run.glob("words*"))
    with full_disk(run, 4096, largest=1000):  # enough for the characters, which come first
        refused(*compose, expected="the disk is full")
        refused(*stage3, expected="the word codebook is missing")
    assert not list(run.glob("words.json"))
    assert cli.main([str(word) for word in compose]) == 0
    assert (run / "words.json").read_bytes() == (composed / "pretrain" / "words.json").read_bytes()


def test_a_disk_that_fills_up_while_reporting_leaves_no_report(
    refused: Refused, full_disk: FullDisk, composed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(composed / "pretrain", run)
    with full_disk(run, 0):
        refused("report", "--run", run, expected="the disk is full")
    assert not [file for file in run.rglob("*report*")]
