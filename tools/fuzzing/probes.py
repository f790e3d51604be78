"""The functions that read mutated files, and the outcomes: harmless, skipped and counted, or a named error.

Everything else is a failure: another exception, a message without words, a file written elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from fuzzing.material import QUIET, annotations_of
from signllm.data.annotations import read_annotations
from signllm.data.loading.pipeline import DataConfig, Loader, VideoSource
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.preview import preview_shards
from signllm.data.shards.sample_encoding import EncodeConfig, encode_sample
from signllm.data.shards.shard_inspection import summarize_shards, verify_shards
from signllm.data.shards.writing import write_shards
from signllm.data.source_samples import LeftOutSample, SourceSample, TimeSpan
from signllm.data.video.decoding import read_video, shrink_short_side
from signllm.data.video.recording import read_time_span
from signllm.data.video.timed_frames import join_chunks, read_timed_chunks
from signllm.data.video.transcoding import transcode
from signllm.errors import UsageError

HARMLESS, SKIPPED, NAMED, FAILED = "harmless", "skipped", "named error", "FAILED"
Probe = Callable[[], bool]
"""Go through one door; return whether something was skipped and counted."""


def outcome(probes: Iterator[tuple[str, Probe]]) -> tuple[str, list[str]]:
    """Call every function; return the worst outcome, and messages about it.

    An error of the system that names the file is a valid answer of a function that reads a video.
    """
    ended, messages = HARMLESS, []
    for name, probe in probes:
        try:
            if probe() and ended == HARMLESS:
                ended = SKIPPED
        except UsageError as error:
            is_message = len(error.what) > 8 and " object at 0x" not in str(error)
            if not is_message:
                return FAILED, [f"{name}: a message without words: {error}"]
            ended = NAMED
            messages.append(f"{name}: {error.what}"[:200])
        except OSError as error:
            if not (name.startswith("read ") and error.strerror and error.filename):
                raise
            messages.append(f"{name}: {error}"[:200])
            ended = NAMED
    return ended, messages


def of_shards(folder: Path, material: Path) -> Iterator[tuple[str, Probe]]:
    """Yield the functions that read a folder of shards; the last one writes it again."""
    yield "info", lambda: bool(summarize_shards(folder)) and False
    yield "loader", lambda: _epoch(folder)
    yield "verify", lambda: bool(verify_shards(folder)) and False
    yield "preview", lambda: bool(preview_shards(folder, folder / "sheet.png", samples=4)) and False
    yield "shard again", lambda: bool(write_shards(annotations_of(material), folder, QUIET)["left_out"])


def _epoch(folder: Path) -> bool:
    index, skipped = ShardIndex(folder), False
    for name in index.splits:
        split = index.split(name)
        source = VideoSource(split, DataConfig(size=16, workers=0, max_bad=1.0))
        loader = Loader(source, batch_size=2, shuffle=name == "train", epochs=1)
        seen: list[str] = []
        for batch in loader:
            bad = [name for name, _ in batch.bad]
            skipped |= bool(bad)
            seen += [name for name, is_real in zip(batch.ids, batch.is_real, strict=True) if is_real] + bad
        assert sorted(seen) == sorted(sample.id for sample in split.samples), "not each sample once"
    return skipped


def of_video(path: Path) -> Iterator[tuple[str, Probe]]:
    """Yield the functions that read a video file or a frame folder."""
    fit = shrink_short_side(64)
    yield "read a video", lambda: bool(len(read_video(path, fit=fit).frames)) and False
    yield "read for translation", lambda: _for_translation(path)
    yield "read at 10 fps", lambda: bool(len(read_video(path, fit=fit, fps=10).frames)) and False
    if path.is_file():
        yield "read bytes", lambda: bool(len(read_video(path.read_bytes(), fit=fit).frames)) and False
        for fps in (None, 10):
            use = partial(transcode, fit=fit, fps=fps, crf=30)
            yield (
                f"encode a cut at {fps} fps",
                lambda use=use: bool(read_time_span(path, TimeSpan(0.04, 0.16), use)) and False,
            )
    for encode in ("h264", "frames", "copy"):
        config = EncodeConfig(encode=encode, size=64)
        yield f"make_sample {encode}", lambda config=config: _left_out(path, config)


def _for_translation(path: Path) -> bool:
    for at_fps in (None, 12.5):
        join_chunks(read_timed_chunks(path, size=32, at_fps=at_fps))
    return False


def _left_out(path: Path, config: EncodeConfig) -> bool:
    sample = encode_sample(SourceSample(id="c", video=path, text="t", split="train"), config)
    return isinstance(sample, LeftOutSample) and len(sample.reason) > 8


def of_dataset(format: str, src: Path, out: Path) -> Iterator[tuple[str, Probe]]:
    """Yield the functions that read a dataset: reading its annotations, then sharding all of it."""

    def sharded() -> bool:
        config = replace(QUIET, encode="frames")
        return bool(write_shards(read_annotations(format, src), out, config)["left_out"])

    yield "annotations", lambda: bool(read_annotations(format, src).left_out)
    yield "shard", sharded
    if (out / "manifest.json").is_file():
        yield "verify", lambda: bool(verify_shards(out)) and False
