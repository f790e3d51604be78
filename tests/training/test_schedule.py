"""Laws of the learning rate: where it starts, peaks and ends, and that it only falls after warmup."""

from __future__ import annotations

import itertools

import pytest

from signllm.training.schedule import learning_rate_factor


def test_warmup_is_linear_and_ends_at_one() -> None:
    factors = [learning_rate_factor(step, 100, warmup_steps=4) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_falls_to_half_in_the_middle_and_to_the_final_factor_after_the_end() -> None:
    assert learning_rate_factor(60, 110, warmup_steps=10) == pytest.approx(0.5)
    assert learning_rate_factor(110, 110, warmup_steps=10, final_factor=0.1) == pytest.approx(0.1)
    factors = [learning_rate_factor(step, 50, warmup_steps=5) for step in range(5, 50)]
    assert all(later < earlier for earlier, later in itertools.pairwise(factors))
    assert factors[-1] > 0, "the last step still learns"


def test_constant_stays_and_a_group_before_its_start_stands_still() -> None:
    assert {learning_rate_factor(step, 9, shape="constant") for step in range(9)} == {1.0}
    assert learning_rate_factor(-1, 9, shape="constant", warmup_steps=3) == 0.0
