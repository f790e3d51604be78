"""How decoded pictures are to be shown: turned and mirrored, with square pixels, in the colours of a screen.

A file states these apart from its pictures. Cameras record as their sensor lies and add a matrix that sets
the picture upright, front cameras one that mirrors it; television and DVD have pixels that are not square.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MOST_ASPECT = 5
"""Pixels this many times as wide as high, or as high as wide, are taken for damage. The widest in use are
128:45 (352 x 576 shown as 16:9)."""


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways in which a picture can lie, in the order in which it is undone.

    Attributes:
        transposed: rows and columns are swapped first.
        mirrored: then left and right are swapped.
        upside_down: then top and bottom are swapped.
    """

    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> Orientation:
        """Return the orientation nearest to a display matrix.

        Args:
            matrix: int32 (9,), a b u c d v x y w as in the track header of an mp4 file: the pixel in column p
                and row q is shown in column a p + c q and row b p + d q.
        """
        a, b, _, c, d = (int(value) for value in matrix[:5])
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transposed=True, mirrored=c < 0, upside_down=b < 0)
        return cls(mirrored=a < 0, upside_down=d < 0)

    @property
    def is_upright(self) -> bool:
        """Whether nothing has to be done."""
        return not (self.transposed or self.mirrored or self.upside_down)

    def turn_upright(self, frames: np.ndarray) -> np.ndarray:
        """Return frames (T, H, W, 3) as they are to be shown, without copying them."""
        shown_THWC = frames.swapaxes(1, 2) if self.transposed else frames
        shown_THWC = shown_THWC[:, :, ::-1] if self.mirrored else shown_THWC
        return shown_THWC[:, ::-1] if self.upside_down else shown_THWC


def read_orientation(frame: Any) -> Orientation | None:
    """Return the orientation that a PyAV frame states, None if it states none."""
    import numpy as np

    side_data = frame.side_data
    matrix = side_data.get("DISPLAYMATRIX") if len(side_data) else None
    if matrix is None or matrix.buffer_size < 36:
        return None
    return Orientation.from_matrix(np.frombuffer(matrix, np.int32, 9))


def read_pixel_aspect(stream: Any) -> Fraction:
    """Return a pixel's width over its height: as the container says, else as the codec says, else 1."""
    for stated in (stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio):
        if stated and Fraction(1, MOST_ASPECT) <= stated <= MOST_ASPECT:
            return Fraction(stated)
    return Fraction(1)


def size_with_square_pixels(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Return the size with square pixels: the height stays; an even width stays even."""
    if aspect == 1:
        return width, height
    step = 1 if width % 2 else 2
    return max(step, step * round(width * aspect / step)), height
