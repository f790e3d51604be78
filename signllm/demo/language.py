"""A small sign language with known truth: units make signs, signs make weather reports.

Real sign languages build signs from a few dozen sublexical units (handshape, location, movement), order
signs by topic and leave out function words. So does this one: 24 units, signs of 2 to 4 units, a lexicon of
50 signs, and a grammar in which time and place come first and the comment last, while the English has its
own order, articles, prepositions and auxiliaries, which no sign shows. Nothing is random but the choice of
sentences: the language is the same on every machine, so a score can be compared. What training may see is
the video and the English; units, signs and boundaries are kept for analysis only.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import MappingProxyType

from signllm.errors import UsageError

HANDSHAPES = ("fist", "flat", "index", "fork", "ring", "spread", "hook", "wedge")
LOCATIONS = ("forehead", "chin", "chest", "left", "right", "low")
MOVEMENTS = ("hold", "nod", "sway", "circle")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One sublexical unit: what the hand looks like, where it is, how it moves."""

    handshape: str
    location: str
    movement: str


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """What is said (``text``, English) and what is signed (``signs``, glosses in sign order)."""

    text: str
    signs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Level:
    """How hard the language is; see ``LEVELS``.

    Attributes:
        name: what ``signllm demo --level`` calls it.
        units: how many units the signs are made of.
        train_signers: people in the train split; dev and test have one of their own each.
        frames_per_unit: how long a unit lasts, on average.
        coarticulation: how much a unit's place gives way to the next one's; 0 is not at all.
        tempo_spread: how much faster or slower than the average a signer may be, as a share.
        jitter: how unsteady hands are: standard deviation, in picture widths.
        studio: dark clothes before a dark wall, as on television; otherwise any colors.
    """

    name: str
    units: int
    train_signers: int
    frames_per_unit: int
    coarticulation: float
    tempo_spread: float
    jitter: float
    studio: bool


LEVELS = {
    "easy": Level(
        name="easy",
        units=24,
        train_signers=9,
        frames_per_unit=12,
        coarticulation=0.0,
        tempo_spread=0.12,
        jitter=0.012,
        studio=True,
    ),
    "hard": Level(
        name="hard",
        units=40,
        train_signers=15,
        frames_per_unit=9,
        coarticulation=0.35,
        tempo_spread=0.25,
        jitter=0.025,
        studio=False,
    ),
}

_SLOTS: dict[str, tuple[str, ...]] = {
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "region": ("north", "south", "east", "west", "coast", "mountains", "valley", "city", "islands"),
    "weather": ("rain", "snow", "fog", "hail", "wind", "thunder", "clouds", "showers", "sunshine"),
    "strength": ("heavy", "light", "persistent", "scattered", "sudden", "freezing"),
    "state": ("dry", "mild", "cold", "warm", "stormy", "calm"),
    "number": ("zero", "five", "ten", "fifteen", "twenty", "thirty"),
    "trend": ("rise", "fall"),
}
_MARKERS = ("move", "stay", "later", "degree", "warning")

# English on the left, sign order on the right; a word in braces is a slot, one in capitals a marker sign.
_FRAMES: tuple[tuple[str, str], ...] = (
    ("there will be {strength} {weather} in the {region} on {day}", "{day} {region} {weather} {strength}"),
    (
        "{weather} will move from the {region} to the {region2} on {day}",
        "{day} {region} {region2} {weather} MOVE",
    ),
    (
        "temperatures in the {region} will {trend} to {number} degrees on {day}",
        "{day} {region} DEGREE {number} {trend}",
    ),
    ("it will stay {state} in the {region} until {day}", "{day} {region} {state} STAY"),
    (
        "{day} will be {state} in the {region} with {strength} {weather} later",
        "{day} {region} {state} LATER {weather} {strength}",
    ),
    (
        "we have a warning of {strength} {weather} for the {region} on {day}",
        "WARNING {day} {region} {weather} {strength}",
    ),
)


def glosses() -> tuple[str, ...]:
    """All signs of the lexicon, in a fixed order."""
    return tuple(word for words in _SLOTS.values() for word in words) + _MARKERS


def content_words() -> frozenset[str]:
    """The English words that a sign stands behind; all other words of a text are function words."""
    return frozenset(glosses()) - {"degree"} | {"degrees"}


def function_words() -> frozenset[str]:
    """The English words that no sign shows: they exist only in the text."""
    plain = " ".join(english for english, _ in _FRAMES)
    return frozenset(word for word in plain.split() if "{" not in word) - content_words()


def units(level: str = "easy") -> tuple[Unit, ...]:
    """The level's units, scattered over all combinations so that several units share each feature."""
    count = _level(level).units
    every = len(HANDSHAPES) * len(LOCATIONS) * len(MOVEMENTS)
    # 77 is coprime with 192: the walk visits every combination once, neighbours differ in all three features.
    picked = ((77 * step + 5) % every for step in range(count))
    return tuple(
        Unit(
            handshape=HANDSHAPES[place % len(HANDSHAPES)],
            location=LOCATIONS[place // len(HANDSHAPES) % len(LOCATIONS)],
            movement=MOVEMENTS[place // (len(HANDSHAPES) * len(LOCATIONS))],
        )
        for place in picked
    )


@functools.cache  # each of the videos needs it twice
def lexicon(level: str = "easy") -> Mapping[str, tuple[int, ...]]:
    """Gloss → its 2 to 4 units (indices into :func:`units`).

    No sign holds a unit twice in a row, and none begins another sign.
    """
    count = _level(level).units
    rng = random.Random(24 + count)
    signs: dict[str, tuple[int, ...]] = {}
    for place, gloss in enumerate(glosses()):
        length = (2, 3, 3, 4)[place % 4]
        while gloss not in signs:
            sign = tuple(rng.randrange(count) for _ in range(length))
            begins = any(sign[: len(other)] == other[: len(sign)] for other in signs.values())
            if not begins and all(a != b for a, b in pairwise(sign)):
                signs[gloss] = sign
    return MappingProxyType(signs)


def first_units(signs: Sequence[str], made: Sequence[int]) -> tuple[int, ...]:
    """Return for each sign of a video the place of its first unit among the units that were ``made``.

    Raises:
        UsageError: units that the signs are not made of, at any level.
    """
    for level in LEVELS:
        spelt = [lexicon(level)[gloss] for gloss in signs]
        if [unit for sign in spelt for unit in sign] == list(made):
            return tuple(accumulate((len(sign) for sign in spelt[:-1]), initial=0))
    raise UsageError(
        f"the signs {', '.join(signs)} are not made of the units {', '.join(map(str, made))}",
        remedy="film the demo again: this truth is of another language",
    )


def sentences(seed: int) -> Iterator[Sentence]:
    """The grammar's sentences, each text once, in an order that depends on ``seed`` alone.

    It has 32,886; asked for more it draws for ever.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        sentence = _draw(rng)
        if sentence.text not in seen:
            seen.add(sentence.text)
            yield sentence


def _draw(rng: random.Random) -> Sentence:
    english, signed = rng.choice(_FRAMES)
    fill = {slot: rng.choice(words) for slot, words in _SLOTS.items()}
    fill["region2"] = rng.choice([word for word in _SLOTS["region"] if word != fill["region"]])
    return Sentence(text=english.format(**fill), signs=tuple(signed.format(**fill).lower().split()))


def _level(name: str) -> Level:
    if name not in LEVELS:
        raise UsageError(
            f"no level {name!r} of the demo language", remedy=f"choose one of: {', '.join(LEVELS)}"
        )
    return LEVELS[name]
