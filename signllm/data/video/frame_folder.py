"""Folders of frames: a video as numbered images, as PHOENIX and CSL-Daily are delivered.

Only images count (one PHOENIX folder contains a stray ``.lprof``), in the order of the numbers in their
names. A frame of zero bytes, which interrupted downloads leave in large numbers, makes the video unusable,
because a sentence with missing frames is a different sentence.
"""

from __future__ import annotations

import io
import re
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.data.system_files import is_system_name
from signllm.data.video.video_error import VideoError

if TYPE_CHECKING:
    import numpy as np

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_DIGITS = re.compile(r"([0-9]+)")
MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; the header of a damaged file may declare 100,000 x 100,000."""


def is_image(path: Path) -> bool:
    """Return whether a path has the name of an image file."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_system_name(path.name)


def list_frame_files(folder: Path) -> list[Path]:
    """Return the paths of the frames in a folder in the order of their numbers.

    Raises:
        VideoError: there are no frames, or a frame has zero bytes.
        OSError: the folder cannot be read.
    """
    frames = sorted((path for path in folder.iterdir() if is_image(path)), key=_natural_sort_key)
    if not frames:
        raise VideoError("there are no frames (.png, .jpg) in the folder", where=folder)
    empty = [frame.name for frame in frames if check_regular_file(frame) == 0]
    if empty:
        raise VideoError(
            f"{len(empty)} of {len(frames)} frames have zero bytes, first {empty[0]}", where=folder
        )
    return frames


def check_regular_file(path: Path) -> int:
    """Check that a path is a regular file, and return its size in bytes.

    Raises:
        VideoError: the path is a pipe or a device, from which reading might never end.
        OSError: the file does not exist.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"{path.name} is not a regular file")
    return status.st_size


def _natural_sort_key(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that orders names by the numbers in them: images2 before images10."""
    return [
        (int(part), "") if part.isascii() and part.isdigit() else (-1, part)
        for part in _DIGITS.split(path.stem)
    ]


def read_image_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) from the header of an encoded image.

    Raises:
        VideoError: the data is not an image, or has more than ``MAX_PIXELS``.
    """
    return _open_image(data).size


def decode_image(data: bytes) -> np.ndarray:
    """Decode one image to uint8 (H, W, 3).

    16 bits are reduced to the upper eight; grey, palettes and CMYK become RGB. The image is rotated as its
    EXIF data states, as videos are. Transparency is ignored, as FFmpeg ignores it in videos: the stored
    color is shown.

    Raises:
        VideoError: the data is not an image, is damaged, or has more than ``MAX_PIXELS``.
    """
    import numpy as np
    from PIL import Image, ImageOps

    image = _open_image(data)
    try:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error) as error:
        raise VideoError(f"damaged image: {error}") from None


def _open_image(data: bytes) -> Any:
    """Return an encoded image as an open Pillow image, after checking its size."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except UnidentifiedImageError:  # its message contains only the address of an object
        raise VideoError("not an image: neither PNG nor JPEG") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"not an image: {error}") from None
    if image.width * image.height > MAX_PIXELS:
        raise VideoError(
            f"the image has {image.width} x {image.height} pixels, the limit is {MAX_PIXELS} pixels"
        )
    return image


def encode_png(frame: np.ndarray) -> bytes:
    """Encode one uint8 (H, W, 3) frame losslessly."""
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(frame).save(target, format="PNG")
    return target.getvalue()
