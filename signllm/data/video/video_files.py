"""The file name extensions of videos.

The list is fixed, so that a dataset has the same samples with every version of FFmpeg. It is FFmpeg's own
list of extensions without those of pictures, sound, subtitles, playlists and raw video, whose files state no
size, and with the extensions that cameras, broadcasters and old programs give to the same containers.
Extensions that other programs use more often (``.dat``, ``.sub``, ``.ogg``) are not in the list; such a file
can be named explicitly.
"""

from __future__ import annotations

import os

_MP4 = "mp4 m4v mp4v mov qt 3gp 3gpp 3g2 3gp2 f4v ismv mj2 psp insv lrv"
_MATROSKA = "mkv mk3d webm"
_MPEG = "mpg mpeg mpe mpv m1v m2v m2p vob vro evo dvd mod tod ts mts m2ts m2t tp trp ty"
_MICROSOFT = "avi divx xvid amv asf wmv wtv dvr-ms"
_STREAMING = "flv kux rm rmvb ivr ogv ogm nsv viv nut"
_STUDIO = "mxf gxf dv dif imx"
_ANIMATION = "gif apng flc fli roq smk bik"
_ELEMENTARY = (
    "h261 h263 h264 264 avc h265 265 hevc h266 266 vvc ivf obu drc vc1 cavs avs2 avs3 mjpg mjpeg y4m dav"
)

VIDEO_SUFFIXES = frozenset(
    f".{extension}"
    for group in (_MP4, _MATROSKA, _MPEG, _MICROSOFT, _STREAMING, _STUDIO, _ANIMATION, _ELEMENTARY)
    for extension in group.split()
)
"""Extensions of videos in lower case with their dots."""


def is_video_name(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has the name of a video file, in upper or lower case.

    A hidden file is not a video: a Mac writes ``._clip.mp4`` next to ``clip.mp4``.
    """
    name = os.path.basename(os.fspath(path))
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith(".")
