"""Tests of the batches: each sample once, within the limit of frames, similar lengths, and resumable."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signllm.data.loading.order import OrderState, permute_samples
from signllm.data.loading.plan import EpochPlan, group_similar_lengths, mix_datasets
from signllm.data.weighted_dataset import WeightedDataset

UNTIMED = settings(deadline=None)
SHARDS = st.lists(st.integers(1, 9), min_size=1, max_size=9).map(tuple)


@st.composite
def plans(draw: st.DrawFn) -> EpochPlan:
    """Generate plans with any number of shards and any lengths, with and without a limit of frames."""
    sizes = draw(SHARDS)
    lengths = draw(st.lists(st.integers(1, 300), min_size=sum(sizes), max_size=sum(sizes)))
    return EpochPlan(
        datasets=(WeightedDataset(shard_sizes=sizes),),
        batch_size=draw(st.integers(1, 12)),
        window=draw(st.integers(1, 4)),
        frame_counts=np.array(lengths),
        max_frames=draw(st.none() | st.integers(1, 2000)),
    )


def consumed(plan: EpochPlan, state: OrderState) -> list[int]:
    """Return the sample numbers of the batch that begins at a state."""
    return plan.order(state.seed, state.epoch)[state.samples_consumed : plan.find_batch_end(state)].tolist()


@UNTIMED
@given(plans(), st.integers(0, 2**63), st.integers(0, 3))
def test_every_sample_once_per_epoch_and_no_batch_too_long(plan: EpochPlan, seed: int, epoch: int) -> None:
    starts = list(plan.batch_starts(OrderState(seed=seed, epoch=epoch), epoch + 1))
    batches = [consumed(plan, start) for start in starts]
    assert len(batches) == plan.batches_until(starts[0], epoch + 1)
    assert sorted(sample for batch in batches for sample in batch) == list(range(plan.samples))
    assert plan.frame_counts is not None
    for batch in batches:
        assert 1 <= len(batch) <= plan.batch_size
        frames = int(plan.frame_counts[batch].sum())
        assert len(batch) == 1 or plan.max_frames is None or frames <= plan.max_frames


@UNTIMED
@given(plans(), st.data())
def test_stopping_anywhere_and_going_on_changes_nothing(plan: EpochPlan, data: st.DataObject) -> None:
    complete = list(plan.batch_starts(OrderState(seed=1), 3))
    stop = data.draw(st.integers(0, len(complete) - 1))
    left = complete[stop + 1 :]
    assert list(plan.batch_starts(plan.state_after(complete[stop]), 3)) == left
    assert plan.batches_until(plan.state_after(complete[stop]), 3) == len(left)
    is_behind = complete[stop].samples_consumed > 0
    assert plan.batches_until(complete[stop], complete[stop].epoch) == (-1 if is_behind else 0)


@UNTIMED
@given(plans(), st.integers(1, 12), st.integers(1, 2000), st.data())
def test_another_batch_size_or_limit_continues_with_the_very_next_sample(
    plan: EpochPlan, batch_size: int, max_frames: int, data: st.DataObject
) -> None:
    complete = list(plan.batch_starts(OrderState(seed=1), 1))
    stop = data.draw(st.integers(0, len(complete) - 1))
    limit = None if plan.max_frames is None else max_frames
    other = dataclasses.replace(plan, batch_size=batch_size, max_frames=limit)
    seen = [sample for start in complete[: stop + 1] for sample in consumed(plan, start)]
    state = plan.state_after(complete[stop])
    seen += [sample for start in other.batch_starts(state, 1) for sample in consumed(other, start)]
    assert seen == plan.order(1, 0).tolist()


@UNTIMED
@given(st.lists(st.integers(1, 500), max_size=600), st.integers(0, 2**63))
def test_like_lengths_are_a_permutation_within_pools(lengths: list[int], seed: int) -> None:
    places = group_similar_lengths(np.array(lengths, np.int64), seed, 0)
    for pool in range(0, len(lengths), 256):
        part = places[pool : pool + 256]
        assert sorted(part.tolist()) == list(range(pool, min(pool + 256, len(lengths))))


def test_neighbours_have_similar_lengths_and_pools_do_not_start_with_short_videos() -> None:
    lengths = np.random.default_rng(0).integers(13, 300, 256 * 40)
    arranged = lengths[group_similar_lengths(lengths, 3, 0)]
    spread = np.ptp(arranged.reshape(-1, 16), axis=1).mean()
    assert spread < 0.3 * np.ptp(lengths.reshape(-1, 16), axis=1).mean()
    halves = arranged.reshape(-1, 128).mean(axis=1).reshape(-1, 2)
    assert 10 <= int((halves[:, 0] > halves[:, 1]).sum()) <= 30  # of 40 pools: long or short first by chance


def test_neighbours_differ_between_epochs() -> None:
    lengths = np.random.default_rng(0).integers(13, 300, 200)  # less than one pool
    groups = [
        {frozenset(row) for row in group_similar_lengths(lengths, 3, epoch)[:192].reshape(-1, 8).tolist()}
        for epoch in range(2)
    ]
    assert len(groups[0] & groups[1]) <= 4


def test_ranks_of_a_step_hold_like_numbers_of_frames() -> None:
    lengths = np.random.default_rng(0).integers(13, 300, 4096)
    sizes = (64,) * 64
    apart = {}
    for limit in (None, 4800):
        plan = EpochPlan(
            datasets=(WeightedDataset(shard_sizes=sizes),),
            batch_size=32,
            frame_counts=lengths,
            max_frames=limit,
        )
        differences = []
        for start in plan.batch_starts(OrderState(seed=0), 1):
            frames = lengths[consumed(plan, start)]
            frames = frames[: len(frames) // 4 * 4]
            differences.append(np.ptp(frames.reshape(-1, 4).sum(axis=0)) / max(1, frames.sum()))
        apart[limit] = np.mean(differences)
    assert apart[4800] < 0.5 * apart[None]


def test_one_dataset_of_weight_one_keeps_the_recorded_order() -> None:
    order = mix_datasets([WeightedDataset(shard_sizes=(4, 4, 4))], 5, 2, 2)
    np.testing.assert_array_equal(order, permute_samples((4, 4, 4), 5, 2, 2))


@UNTIMED
@given(
    st.lists(st.tuples(SHARDS, st.sampled_from([0.1, 0.5, 1.0, 1.7, 2.0, 3.0])), min_size=1, max_size=4),
    st.integers(0, 2**63),
)
def test_datasets_are_used_according_to_their_weights(
    shards_and_weights: list[tuple[tuple[int, ...], float]], seed: int
) -> None:
    datasets = [WeightedDataset(shard_sizes=sizes, weight=weight) for sizes, weight in shards_and_weights]
    total = sum(dataset.samples for dataset in datasets)
    used = np.zeros(total, np.int64)
    for epoch in range(4):
        order = mix_datasets(datasets, seed, epoch, 2)
        assert len(order) == sum(dataset.share for dataset in datasets)
        used += np.bincount(order, minlength=total)
        first = 0
        for dataset in datasets:
            own = used[first : first + dataset.samples]
            assert own.sum() == (epoch + 1) * dataset.share
            assert own.max() - own.min() <= 1  # equally often, up to one, at any time
            first += dataset.samples


def test_any_stretch_of_an_epoch_holds_the_datasets_in_proportion() -> None:
    datasets = [WeightedDataset(shard_sizes=(50,) * 6, weight=2.0), WeightedDataset(shard_sizes=(100,) * 4)]
    for stretch in mix_datasets(datasets, 1, 0, 4).reshape(10, 100):
        assert 55 <= int((stretch < 300).sum()) <= 65


def test_without_shuffling_every_sample_comes_once_in_its_place() -> None:
    datasets = (WeightedDataset(shard_sizes=(3, 2), weight=2.0), WeightedDataset(shard_sizes=(2,)))
    plan = EpochPlan(datasets=datasets, batch_size=3, shuffle=False)
    assert plan.order(0, 0).tolist() == list(range(7))
    assert plan.batches_until(OrderState(seed=0), 1) == 3


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_state_at_the_end_of_an_epoch_begins_the_next(epochs: int) -> None:
    plan = EpochPlan(datasets=(WeightedDataset(shard_sizes=(5,)),), batch_size=2)
    starts = list(plan.batch_starts(OrderState(seed=0, samples_consumed=5), epochs + 1))
    assert len(starts) == 3 * epochs
