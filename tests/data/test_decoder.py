"""Tests of the choice of the decoder: torchcodec replaces PyAV only if its frames are identical."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from signllm.data import decoder
from signllm.data.video import decode_by_pyav, decode_video, encode_h264
from signllm.errors import UsageError

from .conftest import drawn
from .made_videos import hidden_start, oriented
from .made_videos import video as made_video


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    decoder.choose_decoder.cache_clear()
    yield
    decoder.choose_decoder.cache_clear()


class Lookalike:
    """Replaces torchcodec's decoder by PyAV, with frames that ``change`` modifies."""

    change = staticmethod(lambda frames: frames)
    missing = 0

    def __init__(self, source: bytes, **options: object) -> None:
        self.frames = self.change(decode_by_pyav(source))
        height, width = self.frames.shape[1:3]
        declared = len(self.frames) + self.missing
        self.metadata = SimpleNamespace(width=width, height=height, num_frames_from_header=declared)

    def __len__(self) -> int:
        return len(self.frames)

    def get_frames_in_range(self, start: int, stop: int) -> Any:
        return SimpleNamespace(data=torch.from_numpy(self.frames[start:stop].copy()))


def install(monkeypatch: pytest.MonkeyPatch, video_decoder: type[Lookalike] | None) -> None:
    module = ModuleType("torchcodec.decoders")
    if video_decoder is not None:
        module.VideoDecoder = video_decoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)


def test_torchcodec_is_used_for_equal_frames_of_complete_videos_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Marked(Lookalike):
        decoded = 0

        def __init__(self, source: bytes, **options: object) -> None:
            super().__init__(source)
            type(self).decoded += 1

    install(monkeypatch, Marked)
    clip = encode_h264(drawn(5), 25)
    assert decoder.choose_decoder().decoder == "torchcodec"
    before = Marked.decoded
    np.testing.assert_array_equal(decode_video(clip), decode_by_pyav(clip))
    assert Marked.decoded == before + 1
    np.testing.assert_array_equal(decode_video(clip, size=32), decode_by_pyav(clip, size=32))
    assert Marked.decoded == before + 1  # scaled pictures are PyAV's
    monkeypatch.setattr(Marked, "missing", 1)
    assert decoder.decode_by_torchcodec(clip) is None


@pytest.mark.parametrize(
    "clip",
    [
        oriented(encode_h264(drawn(5), 25), (-1, 0, 0, 1)),
        made_video(drawn(5), aspect=Fraction(64, 45)),
        hidden_start(20, 0.4, 0.8),
    ],
    ids=["mirrored", "anamorphic", "edited"],
)
def test_videos_with_display_properties_are_left_to_pyav(
    clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Lookalike)
    assert decoder.choose_decoder().decoder == "torchcodec"
    assert decoder.decode_by_torchcodec(clip) is None
    np.testing.assert_array_equal(decode_video(clip), decode_by_pyav(clip))


@pytest.mark.parametrize(
    ("video_decoder", "why"),
    [
        (type("Brighter", (Lookalike,), {"change": staticmethod(lambda frames: frames ^ 1)}), "differ"),
        (type("Shorter", (Lookalike,), {"change": staticmethod(lambda frames: frames[1:])}), "differ"),
        (None, "not installed"),
    ],
)
def test_another_picture_or_a_broken_install_leaves_pyav(
    video_decoder: type[Lookalike] | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, video_decoder)
    choice = decoder.choose_decoder()
    assert choice.decoder == "pyav"
    assert why in choice.reason
    decoder.choose_decoder.cache_clear()
    monkeypatch.setenv(decoder.VARIABLE, "torchcodec")
    with pytest.raises(UsageError, match=f"SIGNLLM_DECODER=torchcodec: .*{why}"):
        decode_video(encode_h264(drawn(3), 25))


def test_what_may_be_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Lookalike)
    monkeypatch.setenv(decoder.VARIABLE, "pyav")
    assert decoder.choose_decoder() == decoder.DecoderChoice("pyav", "SIGNLLM_DECODER=pyav")
    decoder.choose_decoder.cache_clear()
    monkeypatch.setenv(decoder.VARIABLE, "opencv")
    with pytest.raises(UsageError, match="SIGNLLM_DECODER=opencv"):
        decoder.choose_decoder()


def test_torchcodec_decodes_real_files_like_pyav(realdata: Path) -> None:
    if problem := decoder.find_torchcodec_problem():
        pytest.skip(problem)
    for path in sorted((realdata / "clips").iterdir()):
        theirs = decoder.decode_by_torchcodec(path)
        assert theirs is not None, path.name
        np.testing.assert_array_equal(theirs, decode_by_pyav(path))
    assert decoder.decode_by_torchcodec(b"no video") is None
