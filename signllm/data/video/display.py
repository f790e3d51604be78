"""How the frames of a video are to be displayed: their rotation, mirroring and pixel aspect ratio.

A file states these apart from its frames. Cameras record in the orientation of their sensor and add a matrix
that rotates the frames upright; that of front cameras mirrors them. Television and DVD have pixels that are
not square.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MOST_ASPECT = 5
"""Largest accepted aspect ratio of a pixel; a larger one is taken for damage. The widest in use is 128:45
(352 x 576 shown as 16:9)."""


@dataclass(frozen=True)
class Orientation:
    """One of the eight orientations of a picture, as the steps that turn it upright, in this order.

    Attributes:
        transposed: whether rows and columns must be swapped first.
        mirrored: whether left and right must be swapped then.
        upside_down: whether top and bottom must be swapped last.
    """

    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> Orientation:
        """Return the orientation nearest to a display matrix.

        Args:
            matrix: int32 (9,), the entries a b u c d v x y w as in the track header of an mp4 file: the pixel
                in column p and row q is shown in column a p + c q and row b p + d q.
        """
        a, b, _, c, d = (int(value) for value in matrix[:5])
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transposed=True, mirrored=c < 0, upside_down=b < 0)
        return cls(mirrored=a < 0, upside_down=d < 0)

    @property
    def is_upright(self) -> bool:
        """Whether the picture already is upright."""
        return not (self.transposed or self.mirrored or self.upside_down)

    def turn_upright(self, frames: np.ndarray) -> np.ndarray:
        """Return frames (T, H, W, 3) turned upright, as a view without a copy."""
        upright_THWC = frames.swapaxes(1, 2) if self.transposed else frames
        upright_THWC = upright_THWC[:, :, ::-1] if self.mirrored else upright_THWC
        return upright_THWC[:, ::-1] if self.upside_down else upright_THWC


def read_orientation(frame: Any) -> Orientation | None:
    """Return the orientation that a PyAV frame states, or None."""
    import numpy as np

    side_data = frame.side_data
    matrix = side_data.get("DISPLAYMATRIX") if len(side_data) else None
    if matrix is None or matrix.buffer_size < 36:
        return None
    return Orientation.from_matrix(np.frombuffer(matrix, np.int32, 9))


def read_pixel_aspect(stream: Any) -> Fraction:
    """Return the width of a pixel over its height as the container states it, else the codec, else 1."""
    for stated in (stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio):
        if stated and Fraction(1, MOST_ASPECT) <= stated <= MOST_ASPECT:
            return Fraction(stated)
    return Fraction(1)


def size_with_square_pixels(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Return (width, height) with square pixels; the height stays, and an even width stays even."""
    if aspect == 1:
        return width, height
    step = 1 if width % 2 else 2
    return max(step, step * round(width * aspect / step)), height
