"""Signers: people who differ in size, place, colors, tempo and steadiness, drawn frame by frame.

A signer turns a sequence of units into RGB frames and the units' boundaries. A unit lasts about
``Level.frames_per_unit`` frames: in its first third the hand travels from where it was, then it holds its
place and makes the unit's movement. Pictures are drawn at three times the size and averaged down (PIL), which
is the antialiasing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from signllm.demo.language import Level, Unit

FRAME_SIZE = 48
NOISE_DEVIATION = 2.0  # of the camera's noise, in units of 0 to 255
_OVERSAMPLING = 3
_TRAVEL = 0.33  # share of a unit that the hand needs to get there
_REST = (0.82, 0.98)
_PLACES = {
    "forehead": (0.50, 0.15),
    "chin": (0.50, 0.42),
    "chest": (0.52, 0.68),
    "left": (0.17, 0.50),
    "right": (0.83, 0.50),
    "low": (0.28, 0.85),
}
_MOVES: dict[str, Callable[[float], tuple[float, float]]] = {
    "hold": lambda turn: (0.0, 0.0),
    "nod": lambda turn: (0.0, 0.07 * math.sin(turn)),
    "sway": lambda turn: (0.07 * math.sin(turn), 0.0),
    "circle": lambda turn: (0.06 * math.cos(turn), 0.06 * math.sin(turn)),
}
Color = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Signer:
    """One person: everything that makes two videos of the same sentence differ."""

    name: str
    scale: float
    shift: Point
    skin: Color
    shirt: Color
    background: Color
    tempo: float
    jitter: float


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What was filmed, with its truth.

    Attributes:
        frames: (T,H,W,3) uint8.
        units: what was made, as indices into the inventory.
        starts: each unit's first frame.
        ends: the frame after each unit's last.
    """

    frames: np.ndarray
    units: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]


def make_signer(name: str, seed: int, level: Level) -> Signer:
    """A person drawn by chance: the same for the same seed and level."""
    rng = np.random.default_rng(seed)

    def color(low: int, high: int) -> Color:
        red, green, blue = (int(value) for value in rng.integers(low, high, 3))
        return red, green, blue

    tone = int(rng.integers(150 if level.studio else 110, 235))
    return Signer(
        name=name,
        scale=float(rng.uniform(0.88, 1.08)),
        shift=(float(rng.uniform(-0.04, 0.04)), float(rng.uniform(-0.03, 0.03))),
        skin=(tone, int(tone * 0.80), int(tone * 0.65)),
        shirt=color(20, 80 if level.studio else 130),
        background=color(30, 110 if level.studio else 220),
        tempo=float(rng.uniform(1 - level.tempo_spread, 1 + level.tempo_spread)),
        jitter=level.jitter * float(rng.uniform(0.7, 1.3)),
    )


def record(
    signer: Signer, sequence: Sequence[int], inventory: Sequence[Unit], level: Level, seed: int
) -> Recording:
    """Film ``signer`` making the units ``sequence`` (indices into ``inventory``), from rest to rest."""
    rng = np.random.default_rng(seed)
    path, starts, ends = _path(signer, [inventory[index] for index in sequence], level, rng)
    scene = _Scene(signer)
    frames = np.empty((len(path), FRAME_SIZE, FRAME_SIZE, 3), dtype=np.uint8)
    for frame, (handshape, place, turn) in zip(frames, path, strict=True):
        # One frame's noise at a time stays in the processor's cache; 32 bits take half as long as 64.
        noisy = rng.standard_normal(frame.shape, dtype=np.float32)
        noisy *= NOISE_DEVIATION
        noisy += scene.draw(handshape, place, turn)
        frame[:] = np.clip(noisy, 0, 255, out=noisy)
    return Recording(frames=frames, units=tuple(sequence), starts=tuple(starts), ends=tuple(ends))


def _path(
    signer: Signer, sequence: list[Unit], level: Level, rng: np.random.Generator
) -> tuple[list[tuple[str, Point, float]], list[int], list[int]]:
    """Where the hand is in every frame: (handshape, place, tilt); and each unit's first frame and end."""
    path: list[tuple[str, Point, float]] = [("fist", _REST, 0.0)] * int(rng.integers(3, 7))
    starts, ends = [], []
    before = _REST
    for place, unit in enumerate(sequence):
        frames = max(6, round(level.frames_per_unit * signer.tempo * float(rng.uniform(0.88, 1.12))))
        starts.append(len(path))
        target = _PLACES[unit.location]
        if level.coarticulation and place + 1 < len(sequence):
            target = _between(target, _PLACES[sequence[place + 1].location], level.coarticulation * 0.3)
        phase = float(rng.uniform(0, 2 * math.pi))
        for frame in range(frames):
            travelled = min(1.0, frame / (_TRAVEL * frames))
            offset = _MOVES[unit.movement](phase + 2 * math.pi * frame / 7.0)
            at = _between(before, target, 0.5 - 0.5 * math.cos(math.pi * travelled))
            shaky = rng.normal(0.0, signer.jitter, 2)
            handshape = unit.handshape if travelled > 0.4 or not path else path[-1][0]
            tilt = float(rng.normal(0.0, signer.jitter * 4))
            path.append((handshape, (at[0] + offset[0] + shaky[0], at[1] + offset[1] + shaky[1]), tilt))
        before = target
        ends.append(len(path))
    path += [("fist", _between(before, _REST, step / 4), 0.0) for step in range(1, 5)]
    return path, starts, ends


def _between(a: Point, b: Point, share: float) -> Point:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share


class _Scene:
    """A signer's picture: background, head and body are drawn once, arm and hand for each frame."""

    def __init__(self, signer: Signer) -> None:
        self.signer = signer
        self.pixels = FRAME_SIZE * _OVERSAMPLING
        self.still = Image.new("RGB", (self.pixels, self.pixels), signer.background)
        canvas = ImageDraw.Draw(self.still)
        canvas.ellipse(self._box((0.5, 1.02), 0.30, 0.46), fill=signer.shirt)
        canvas.ellipse(self._box((0.5, 0.27), 0.12, 0.16), fill=signer.skin)

    def draw(self, handshape: str, place: Point, tilt: float) -> np.ndarray:
        """One frame (H,W,3) as float32, before noise."""
        picture = self.still.copy()
        canvas = ImageDraw.Draw(picture)
        shoulder = self._at((0.72 if place[0] > 0.4 else 0.30, 0.68))
        hand = self._at(place)
        canvas.line([shoulder, hand], fill=self.signer.shirt, width=round(0.05 * self.pixels))
        red, green, blue = (max(0, part - 90) for part in self.signer.skin)
        for fill, grow in (((red, green, blue), 0.018), (self.signer.skin, 0.0)):
            draw_hand(
                canvas,
                handshape,
                centre=hand,
                radius=0.105 * self.pixels * self.signer.scale,
                tilt=tilt,
                fill=fill,
                grow=grow * self.pixels,
            )
        return np.asarray(picture.reduce(_OVERSAMPLING), dtype=np.float32)

    def _at(self, point: Point) -> Point:
        scale, (right, down) = self.signer.scale, self.signer.shift
        return (
            (0.5 + (point[0] - 0.5) * scale + right) * self.pixels,
            (0.5 + (point[1] - 0.5) * scale + down) * self.pixels,
        )

    def _box(self, centre: Point, width: float, height: float) -> tuple[float, float, float, float]:
        x, y = self._at(centre)
        wide, high = width * self.pixels * self.signer.scale, height * self.pixels * self.signer.scale
        return x - wide, y - high, x + wide, y + high


# Fingers as (angle in degrees from upright, length in palm radii); the palm is a disc but for ring and wedge.
_FINGERS = {
    "fist": (),
    "flat": ((-10, 1.9), (0, 2.0), (10, 1.9)),
    "index": ((0, 2.3),),
    "fork": ((-28, 2.2), (28, 2.2)),
    "spread": ((-75, 1.9), (-38, 2.0), (0, 2.0), (38, 2.0), (75, 1.9)),
    "hook": ((0, 2.1), (90, 2.1)),
}


def draw_hand(
    canvas: ImageDraw.ImageDraw,
    handshape: str,
    *,
    centre: Point,
    radius: float,
    tilt: float,
    fill: Color,
    grow: float,
) -> None:
    """Draw one hand.

    Args:
        canvas: what is drawn on.
        handshape: one of ``HANDSHAPES``.
        centre: of the palm, in pixels.
        radius: of the palm, in pixels.
        tilt: in radians from upright.
        fill: color.
        grow: pixels that everything is wider by: drawn dark beneath the hand, this is its outline.
    """
    x, y = centre
    if handshape == "ring":
        outer = radius * 1.25 + grow
        canvas.ellipse(
            (x - outer, y - outer, x + outer, y + outer), outline=fill, width=round(radius * 0.5 + 2 * grow)
        )
        return
    if handshape == "wedge":
        corners = [tilt - math.pi / 2 + side * 2 * math.pi / 3 for side in range(3)]
        reach = radius * 1.7 + 1.5 * grow
        canvas.polygon([(x + reach * math.cos(a), y + reach * math.sin(a)) for a in corners], fill=fill)
        return
    palm = radius * (1.15 if handshape == "fist" else 0.85) + grow
    canvas.ellipse((x - palm, y - palm, x + palm, y + palm), fill=fill)
    for degrees, length in _FINGERS[handshape]:
        angle = tilt + math.radians(degrees) - math.pi / 2
        reach = radius * length * 0.9 + grow
        canvas.line(
            [(x, y), (x + reach * math.cos(angle), y + reach * math.sin(angle))],
            fill=fill,
            width=round(radius * 0.42 + 2 * grow),
        )
