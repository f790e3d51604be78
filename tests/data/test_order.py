"""Tests of the sample order: a permutation, a pure function, and independent of interruptions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signllm.data.loading.order import (
    OrderState,
    hash_integers,
    permute_samples,
    splitmix64,
)
from signllm.errors import UsageError

UNTIMED = settings(deadline=None)
SHARDS = st.lists(st.integers(1, 9), min_size=1, max_size=9)
SEEDS = st.integers(0, 2**63)


@UNTIMED
@given(SHARDS, SEEDS, st.integers(0, 100), st.integers(1, 12))
def test_every_sample_once(sizes: list[int], seed: int, epoch: int, window: int) -> None:
    order = permute_samples(sizes, seed, epoch, window)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    np.testing.assert_array_equal(order, permute_samples(sizes, seed, epoch, window))


@UNTIMED
@given(SHARDS, SEEDS)
def test_a_window_of_one_shard_keeps_shards_together(sizes: list[int], seed: int) -> None:
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    visited = shard_of[permute_samples(sizes, seed, 0, 1)]
    assert 1 + int((np.diff(visited) != 0).sum()) == len(sizes)


def test_seeds_and_epochs_give_other_orders() -> None:
    orders = {tuple(permute_samples([10] * 5, seed, epoch, 5)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_places_are_uniform() -> None:
    # sample 0 of 6 over 3000 epochs: 500 per place, standard deviation 20
    places = [int(np.argmin(permute_samples([3, 3], 7, epoch, 2))) for epoch in range(3000)]
    counts = np.bincount(places, minlength=6)
    assert np.abs(counts - 500).max() < 5 * 20.4


def test_hash_is_splitmix64() -> None:
    # the first outputs of the reference implementation (Vigna, splitmix64.c) seeded with 1234567
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + golden * np.arange(3, dtype=np.uint64)
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_recorded_order() -> None:
    # a change here would break resuming of every run that exists
    assert permute_samples([4, 4, 4], seed=5, epoch=2, window=2).tolist() == [
        1,
        5,
        4,
        6,
        2,
        0,
        7,
        3,
        10,
        9,
        11,
        8,
    ]


def test_draws_depend_on_every_key() -> None:
    drawn = {
        tuple(hash_integers(*keys, count=2).tolist()) for keys in [(0, 0), (0, 1), (1, 0), (0, 0, 0), (-1, 0)]
    }
    assert len(drawn) == 5


def test_an_impossible_state() -> None:
    with pytest.raises(UsageError, match="not a position in the data"):
        OrderState(seed=0, epoch=-1)
