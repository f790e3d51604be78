"""Negatives: which vectors are admissible, with which shares, and that no others are drawn."""

from __future__ import annotations

import pytest
import torch

from signllm.models.vq_sign.context_predictor import ContextPredictor
from signllm.models.vq_sign.negatives import Positions, draw_negatives, negative_weights

LENGTHS, REAL = [9, 1, 6, 4], [1.0, 1.0, 1.0, 0.0]


def positions(lengths: list[int] = LENGTHS, real: list[float] = REAL) -> Positions:
    counts = torch.tensor(lengths)
    video = torch.repeat_interleave(torch.arange(len(lengths)), counts)
    start = (counts.cumsum(0) - counts)[video]
    row = torch.arange(len(video))
    return Positions(
        row=row, start=start, place=row - start, length=counts[video], weight=torch.tensor(real)[video]
    )


def admissible(pool: Positions, target: int, row: int, exclude: int) -> str | None:
    """Return by the definition which kind of negative a row is: ``same``, ``other`` or None."""
    if pool.weight[row] == 0:
        return None
    if pool.start[target] != pool.start[row]:
        return "other"
    return "same" if abs(int(pool.place[target]) - int(pool.place[row])) > exclude else None


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("exclude", [0, 2, 4])
def test_weights_share_out_one_over_the_admissible(share: float, exclude: int) -> None:
    pool = positions()
    weights = negative_weights(pool, pool, same_video_share=share, exclude=exclude)
    for target in pool.row[pool.weight > 0].tolist():
        kinds = [admissible(pool, target, row, exclude) for row in pool.row.tolist()]
        share_here = share if "same" in kinds else 0.0
        expected = [
            share_here / kinds.count("same")
            if kind == "same"
            else (1 - share_here) / kinds.count("other")
            if kind == "other"
            else 0.0
            for kind in kinds
        ]
        torch.testing.assert_close(weights[target], torch.tensor(expected))


@pytest.mark.parametrize("exclude", [0, 2, 4])
def test_a_draw_takes_admissible_rows_only_and_reaches_them_all(exclude: int) -> None:
    pool = positions()
    generator = torch.Generator().manual_seed(0)
    rows, valid = draw_negatives(pool, 400, same_video_share=0.5, exclude=exclude, generator=generator)
    assert valid[pool.weight > 0].all()
    for target in pool.row[pool.weight > 0].tolist():
        kinds = {row: admissible(pool, target, row, exclude) for row in pool.row.tolist()}
        drawn = rows[target].tolist()
        assert set(drawn) == {row for row, kind in kinds.items() if kind is not None}
        if "same" in kinds.values():
            assert sum(kinds[row] == "same" for row in drawn) == 200


def test_one_video_alone_draws_from_itself_and_one_position_has_no_negative() -> None:
    pool = positions([7], [1.0])
    rows, valid = draw_negatives(
        pool, 50, same_video_share=0.0, exclude=1, generator=torch.Generator().manual_seed(0)
    )
    assert valid.all()
    assert ((rows - pool.row[:, None]).abs() > 1).all()
    weights = negative_weights(pool, pool, same_video_share=0.0, exclude=1)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(7))
    lonely = positions([1], [1.0])
    assert not draw_negatives(lonely, 5, same_video_share=0.5, exclude=4, generator=torch.Generator())[
        1
    ].any()
    assert negative_weights(lonely, lonely, same_video_share=0.5, exclude=4).sum() == 0


def test_the_mean_of_many_draws_is_the_exact_expectation() -> None:
    from dataclasses import replace

    from tests.models import parts

    batch = parts.batch_of()
    counts = torch.tensor([8, 5, 7, 4])
    torch.manual_seed(0)
    z, codes = torch.randn(24, 6), torch.randn(24, 6)
    losses = {}
    for negatives in (0, 4000):
        torch.manual_seed(1)
        config = parts.vq_config(negatives=negatives, same_video_share=0.5, exclude=1).predictor
        model = ContextPredictor(config, 6)
        losses[negatives] = model(codes, z, counts, batch)["l_cp"].item()
        again = model(codes, z, counts, replace(batch, epoch=1))["l_cp"].item()
        assert (again == losses[negatives]) == (negatives == 0)
    assert losses[4000] == pytest.approx(losses[0], abs=2e-3)


def test_what_fills_up_a_batch_changes_no_draw() -> None:
    """This must hold for later draws too, because the filling of a batch depends on the number of ranks."""
    pools = [positions([9, 1, 6], [1.0] * 3), positions([9, 1, 6, 4, 9], [1.0] * 3 + [0.0] * 2)]
    generators = [torch.Generator().manual_seed(5) for _ in pools]
    for _ in range(3):
        drawn, filled_up = (
            draw_negatives(pool, 8, same_video_share=0.5, exclude=2, generator=generator)[0]
            for pool, generator in zip(pools, generators, strict=True)
        )
        assert torch.equal(filled_up[: len(drawn)], drawn)
