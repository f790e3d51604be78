"""`signllm translate`: its inputs, its output, and the treatment of files that are no videos."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import signllm
from signllm import cli
from signllm.inference.translate import Translator
from signllm.inference.video_input import is_text
from signllm.package_files import package_folder
from tests import warm


@pytest.fixture(scope="module")
def folder(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos at two depths, one of them as frame pictures, and with other files."""
    from PIL import Image

    from signllm.data.video.decoding import decode_video

    top = tmp_path_factory.mktemp("folder")
    videos = trained_folder / "videos"
    for target, source in (("b.mp4", "clip0"), ("a.mp4", "clip1"), ("deep/er/c.MP4", "clip2")):
        (top / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / f"{source}.mp4", top / target)
    (top / "deep" / "frames").mkdir()
    for number, frame in enumerate(decode_video(videos / "clip3.mp4")):
        Image.fromarray(frame).save(top / "deep" / "frames" / f"{number}.png")
    for name in ("notes.txt", ".hidden.mp4"):
        (top / name).write_text("no video")
    return top


@pytest.fixture(scope="module")
def translator(trained_folder: Path) -> Translator:
    return signllm.load(trained_folder / "run")


def run(
    trained_folder: Path, *arguments: object, capsys: pytest.CaptureFixture[str], code: int = 0
) -> tuple[str, str]:
    assert cli.main(["translate", "--run", str(trained_folder / "run"), *map(str, arguments)]) == code
    return capsys.readouterr()


def test_a_folder_is_translated_in_the_order_of_its_names(
    folder: Path, trained_folder: Path, translator: Translator, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(trained_folder, folder, "--batch", 2, capsys=capsys)
    names = ["a.mp4", "b.mp4", "deep/er/c.MP4", "deep/frames"]
    expected = [f"{folder / name}\t{translator.translate(folder / name).text}" for name in names]
    assert out.splitlines() == expected
    single, _ = run(trained_folder, folder / "deep" / "frames", capsys=capsys)
    assert single.splitlines() == expected[3:]


def test_json_lines_contain_every_field_of_the_python_result(
    folder: Path,
    trained_folder: Path,
    translator: Translator,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "out" / "translations.jsonl"
    options = ("--json", "--beams", 3, "--n-best", 2, "--language", "south")
    out, _ = run(trained_folder, folder, *options, "--out", target, capsys=capsys)
    assert out == ""
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert lines[0]["video"] == str(folder / "a.mp4")
    for line in lines:
        expected = translator.translate(
            line["video"], "south", generation=_changed(translator, beams=3, n_best=2)
        )
        assert line["text"] == expected.text == line["candidates"][0]["text"]
        assert [c["text"] for c in line["candidates"]] == [c.text for c in expected.candidates]
        assert line["score"] == pytest.approx(expected.score, rel=1e-4)
        assert line["word_times"] == [list(pair) for pair in expected.word_times]
        assert (line["start_s"], line["end_s"]) == (expected.start_s, expected.end_s)
        assert (line["characters"], line["words"]) == (list(expected.characters), list(expected.words))


def _changed(translator: Translator, **changes: object) -> object:
    import dataclasses

    return dataclasses.replace(translator.config.generation, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["list", "bytes"])
def test_standard_input_is_a_list_of_videos_or_a_video(
    content: str,
    folder: Path,
    trained_folder: Path,
    translator: Translator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = folder / "a.mp4"
    data = f"{video}\n\n{folder / 'deep'}\n".encode() if content == "list" else video.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    out, _ = run(trained_folder, "-", capsys=capsys)
    name = str(video) if content == "list" else "-"
    assert out.splitlines()[0] == f"{name}\t{translator.translate(video).text}"
    assert len(out.splitlines()) == (3 if content == "list" else 1)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a.mp4\nb.mp4\n", True),
        ("ä.mp4\n".encode() * 1000, True),
        (b"", True),
        (b"\x00\x00\x00\x18ftypmp42", False),
        (b"GIF89a\xf0\x00", False),
        (b"x" * 4095 + "ä".encode() + b"x", True),
    ],
)
def test_text_is_distinguished_from_video(data: bytes, text: bool) -> None:
    assert is_text(data) == text


def test_lines_of_a_cut_recording_contain_the_times_of_the_pieces(
    folder: Path, trained_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(
        trained_folder, folder / "b.mp4", "--windows", 0.8, "--beams", 2, "--n-best", 2, capsys=capsys
    )
    lines = [line.split("\t") for line in out.splitlines()]
    assert {(line[1], line[2]) for line in lines} == {("0.00", "0.80"), ("0.80", "1.60"), ("1.60", "1.64")}
    assert all(line[0] == str(folder / "b.mp4") and float(line[3]) <= 0 for line in lines)


def test_files_that_are_no_videos_are_named_and_the_others_translated(
    folder: Path, trained_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("this is text\n" * 50)
    bad = [tmp_path / "text.mp4", tmp_path / "missing.mp4"]
    out, err = run(trained_folder, folder / "a.mp4", bad[0], folder / "b.mp4", bad[1], capsys=capsys, code=1)
    assert [line.split("\t")[0] for line in out.splitlines()] == [
        str(folder / "a.mp4"),
        str(folder / "b.mp4"),
    ]
    assert f"signllm: {bad[0]}: the video cannot be read" in err
    assert f"signllm: {bad[1]}: there is no such video" in err
    assert "2 of 4 videos could not be translated" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("text.mp4", (), "the video cannot be read"),
        ("sound.wav", (), "no video stream"),
        ("empty.mp4", (), "zero bytes"),
        ("nothing", (), "no video and no frame picture"),
        ("missing.mp4", (), "there is no such video"),
        ("text.mp4", ("--windows", "2"), "the video cannot be read"),
        ("text.mp4", ("--windows", "2", "--pauses"), "exclude each other"),
        ("text.mp4", ("--overlap", "1"), "--overlap 1 needs windows"),
        ("text.mp4", ("--batch", "0"), "batch is 0"),
        ("text.mp4", ("--n-best", "2"), "n_best is 2"),
        ("text.mp4", ("--device", "cuda:9"), "cannot be moved to cuda:9"),
    ],
)
def test_a_usage_error_is_one_message(
    name: str,
    options: tuple[str, ...],
    problem: str,
    trained_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.mp4").write_text("this is text\n" * 50)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "nothing").mkdir()
    _write_sound(tmp_path / "sound.wav")
    try:
        ended = cli.main(["translate", "--run", str(trained_folder / "run"), str(tmp_path / name), *options])
    except SystemExit as end:  # tyro's own refusals
        ended = int(end.code or 0)
    out, err = capsys.readouterr()
    assert (ended, out) == (2, "")
    assert problem in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert err.count("remedy:") <= 1


def _write_sound(path: Path) -> None:
    import wave

    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))


@pytest.fixture
def partitioning_every_weight(tmp_path: Path) -> str:
    settings = json.loads((package_folder("ds_configs") / "zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "cut.json").write_text(json.dumps(settings))
    return str(tmp_path / "cut.json")


@pytest.mark.parametrize(("ranks", "partitioned"), [(2, False), (3, True)], ids=["2", "3-zero3"])
def test_several_ranks_print_what_one_rank_prints(
    ranks: int,
    folder: Path,
    trained_folder: Path,
    tmp_path: Path,
    partitioning_every_weight: str,
    capsys: pytest.CaptureFixture[str],
    *,
    partitioned: bool,
) -> None:
    """The case has sampling, several windows of batches, a cut recording, and a file that is no video."""
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    draws = ("--json", "--temperature", "1.5", "--n-best", "2", "--seed", "5", "--batch", "1")
    outputs = []
    for cut in ((), ("--windows", "0.6")):
        out, _ = run(trained_folder, folder, bad, *draws, *cut, capsys=capsys, code=1)
        outputs.append([json.loads(line) for line in out.splitlines()])
    options = (*draws, *(("--deepspeed", partitioning_every_weight) if partitioned else ()))
    both = f"""
import sys
from signllm import cli
arguments = ["translate", {str(folder)!r}, {str(bad)!r}, *{options!r},
             "--run", {str(trained_folder / "run")!r}]
ended = [cli.main([*arguments, "--out", {str(tmp_path)!r} + "/" + name, *cut])
         for name, cut in (("complete", ()), ("cut", ("--windows", "0.6")))]
sys.exit(0 if ended == [1, 1] else 3)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    launcher = [warm.python(), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    script = tmp_path / "both.py"
    script.write_text(both)
    done = subprocess.run([*launcher, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, expected in zip(("complete", "cut"), outputs, strict=True):
        lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert len(lines) == len(expected)
        for line, expected_line in zip(lines, expected, strict=True):
            for record in (line, expected_line):
                record.pop("seconds")
                record["score"] = round(record["score"], 3)
                for candidate in record["candidates"]:
                    candidate["score"] = round(candidate["score"], 3)
            assert line == expected_line


def test_a_partitioned_model_does_not_accept_a_device(
    folder: Path, trained_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--deepspeed", "zero3", "--device", "cuda:1")
    _, err = run(trained_folder, folder / "a.mp4", *options, capsys=capsys, code=2)
    assert "cuda:1" in err
    assert "zero3" in err
    _, err = run(trained_folder, folder / "a.mp4", "--deepspeed", "zero2", capsys=capsys, code=2)
    assert "zero2 does not partition the language model" in err
