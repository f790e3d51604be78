"""Tests of the file names of videos."""

import pytest

from signllm.data.video.video_files import VIDEO_SUFFIXES, is_video_name


@pytest.mark.parametrize(
    "name",
    [
        "00012.MTS",
        "00012.m2ts",
        "phone.3gp",
        "old.flv",
        "wiki.ogv",
        "VTS_01_1.VOB",
        "studio.mxf",
        "tape.dv",
        "MOV001.MOD",
        "tv.wmv",
        "a/b.c/clip.Mp4",
    ],
)
def test_what_cameras_and_broadcasters_write_is_a_video(name: str) -> None:
    assert is_video_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "a.txt",
        "a.srt",
        "a.jpg",
        "a.PNG",
        "a.mp3",
        "a.m4a",
        "a.json",
        "mp4",
        ".mp4",
        "._a.mp4",
        "a.mp4.part",
        "a",
    ],
)
def test_pictures_sound_text_and_hidden_files_are_not(name: str) -> None:
    assert not is_video_name(name)


def test_the_list_covers_the_containers_that_ffmpeg_opens() -> None:
    """The list contains the extensions of video containers in the FFmpeg of PyAV."""
    from av.format import ContainerFormat

    for name in ("matroska", "avi", "mpegts", "flv", "mxf", "3gp", "asf", "ogv", "dv", "webm", "vob", "ivf"):
        extensions = {f".{extension}" for extension in ContainerFormat(name, "w").extensions}
        assert extensions & VIDEO_SUFFIXES, name
