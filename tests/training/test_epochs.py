"""Where epochs end in optimizer steps, against counting them out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from signllm.training.epochs import EpochEnds


class Epochs:
    """Batches numbered by their epoch; epochs need not have equally many."""

    def __init__(self, lengths: list[int]) -> None:
        self.of_batch = [epoch for epoch, length in enumerate(lengths) for _ in range(length)]
        self.ends = list(accumulate(lengths))
        self.read_batches = 0

    def batches_until(self, epoch: int) -> int:
        return max(-1, ([0, *self.ends])[epoch] - self.read_batches)

    def __iter__(self) -> Iterator[Any]:
        while self.read_batches < len(self.of_batch):
            self.read_batches += 1
            yield self.of_batch[self.read_batches - 1]

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        raise NotImplementedError


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 9))
def test_an_epoch_ends_with_its_last_whole_step(lengths: list[int], accumulation: int, resumed: int) -> None:
    batches = Epochs(lengths)
    steps = len(batches.of_batch) // accumulation
    resumed = min(resumed, steps)
    batches.read_batches = resumed * accumulation
    stream, ends, last_steps = iter(batches), EpochEnds(batches, accumulation), []
    for step in range(resumed + 1, steps + 1):
        epochs = [next(stream) for _ in range(accumulation)]
        if ends.ends_at(step, epochs[-1]):
            last_steps.append(step)
    assert last_steps == sorted(
        {end // accumulation for end in batches.ends} & set(range(resumed + 1, steps + 1))
    )
