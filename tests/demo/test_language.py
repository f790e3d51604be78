"""The demo language: its sizes, what makes it decodable, and what the text has that the signs have not."""

import subprocess
import sys
from itertools import combinations, islice, pairwise
from pathlib import Path

import pytest

from signllm.demo.language import (
    LEVELS,
    content_words,
    function_words,
    glosses,
    lexicon,
    sentences,
    units,
)
from signllm.errors import UsageError

CHECKOUT = Path(__file__).parents[2]
SENTENCES = list(islice(sentences(0), 3000))


@pytest.mark.parametrize(("level", "count"), [("easy", 24), ("hard", 40)])
def test_units_are_distinct_and_share_their_features(level: str, count: int) -> None:
    inventory = units(level)
    assert len(set(inventory)) == len(inventory) == count
    for feature in ("handshape", "location", "movement"):
        values = [getattr(unit, feature) for unit in inventory]
        assert min(values.count(value) for value in values) >= 2


@pytest.mark.parametrize("level", LEVELS)
def test_fifty_signs_of_two_to_four_units_and_none_begins_another(level: str) -> None:
    signs = lexicon(level)
    assert tuple(signs) == glosses()
    assert len(signs) == 50
    assert {len(sign) for sign in signs.values()} == {2, 3, 4}
    for one, other in combinations(signs.values(), 2):
        assert one[: len(other)] != other[: len(one)]
    for sign in signs.values():
        assert all(a != b for a, b in pairwise(sign))
        assert all(0 <= unit < LEVELS[level].units for unit in sign)


def test_a_sentence_occurs_once() -> None:
    assert len({sentence.text for sentence in SENTENCES}) == len(SENTENCES)


def test_signs_show_content_words_and_nothing_else() -> None:
    """Function words are in no lexicon; what is signed is said, each as often."""
    assert not function_words() & (set(glosses()) | content_words())
    assert {"the", "in", "on", "will"} <= function_words()
    spoken = {"degree": "degrees"}
    for sentence in SENTENCES:
        words = sentence.text.split()
        assert set(words) <= content_words() | function_words()
        signed = [spoken.get(sign, sign) for sign in sentence.signs]
        assert sorted(signed) == sorted(word for word in words if word in content_words())


def test_signs_come_in_another_order_than_words() -> None:
    """No kind of sentence is signed in the order in which it is said."""
    spoken = {"degree": "degrees"}
    for sentence in SENTENCES:
        words = [word for word in sentence.text.split() if word in content_words()]
        assert words != [spoken.get(sign, sign) for sign in sentence.signs]


def test_the_language_is_the_same_in_every_process() -> None:
    code = (
        "from itertools import islice; from signllm.demo.language import *;"
        "print([lexicon('hard'), units('hard'), function_words() and sorted(function_words()),"
        " list(islice(sentences(7), 20))])"
    )

    def sentences_of_process(hash_seed: str) -> str:
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(CHECKOUT)}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert sentences_of_process("1") == sentences_of_process("2")


def test_another_seed_says_other_things() -> None:
    assert list(islice(sentences(1), 20)) != SENTENCES[:20]


def test_an_unknown_level_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="easy, hard"):
        lexicon("nonsense")
