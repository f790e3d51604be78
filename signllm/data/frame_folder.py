"""Frame folders: a video as numbered images, the way PHOENIX and CSL-Daily are delivered.

Only images count (one PHOENIX folder holds a stray ``.lprof``), in the order of the numbers in their names. A
frame of zero bytes, which interrupted downloads leave by the thousand, spoils the clip: a sentence with holes
is no sentence.
"""

from __future__ import annotations

import io
import re
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.data.system_files import is_system_name
from signllm.data.video_error import VideoError

if TYPE_CHECKING:
    import numpy as np

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_DIGITS = re.compile(r"([0-9]+)")
MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; a header may declare 100,000 x 100,000."""


def is_image(path: Path) -> bool:
    """Say whether a path is named like a frame."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_system_name(path.name)


def list_frame_files(folder: Path) -> list[Path]:
    """Return the frames of a folder in order of their numbers.

    Raises:
        VideoError: no frames, or a frame of zero bytes.
        OSError: the folder cannot be read.
    """
    frames = sorted((path for path in folder.iterdir() if is_image(path)), key=_natural_sort_key)
    if not frames:
        raise VideoError("no frames (.png, .jpg) in the folder", where=folder)
    empty = [frame.name for frame in frames if check_regular_file(frame) == 0]
    if empty:
        raise VideoError(
            f"{len(empty)} of {len(frames)} frames have zero bytes, first {empty[0]}", where=folder
        )
    return frames


def check_regular_file(path: Path) -> int:
    """Return the size of a file in bytes.

    Raises:
        VideoError: a pipe or a device, from which reading might never end.
        OSError: there is no such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"{path.name} is no regular file")
    return status.st_size


def _natural_sort_key(path: Path) -> list[tuple[int, str]]:
    """Order names by the numbers in them: images2 before images10."""
    return [
        (int(part), "") if part.isascii() and part.isdigit() else (-1, part)
        for part in _DIGITS.split(path.stem)
    ]


def read_image_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) from an image's header.

    Raises:
        VideoError: not an image, or more than ``MAX_PIXELS``.
    """
    return _open_image(data).size


def decode_image(data: bytes) -> np.ndarray:
    """Decode one frame to uint8 (H, W, 3).

    Of 16 bits the upper eight count; grey, palettes and CMYK become RGB. It is turned as its EXIF says, as
    videos are. Transparency is ignored, as FFmpeg ignores it in videos: the colour stored below is shown.

    Raises:
        VideoError: not an image, a damaged one, or more than ``MAX_PIXELS``.
    """
    import numpy as np
    from PIL import Image, ImageOps

    image = _open_image(data)
    try:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error) as error:
        raise VideoError(f"damaged image: {error}") from None


def _open_image(data: bytes) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except UnidentifiedImageError:  # its message is the address of an object
        raise VideoError("not an image: neither PNG nor JPEG") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"not an image: {error}") from None
    if image.width * image.height > MAX_PIXELS:
        raise VideoError(f"image of {image.width} x {image.height}, limit {MAX_PIXELS} pixels")
    return image


def encode_png(frame: np.ndarray) -> bytes:
    """Encode one uint8 (H, W, 3) frame losslessly."""
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(frame).save(target, format="PNG")
    return target.getvalue()
