"""One rank and two do the same work: equal losses, gradients and codebooks, and half a frozen model each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models import on_ranks

Ranks = tuple[dict[str, Tensor], list[dict[str, Tensor]]]


def test_gathered_rows_are_in_the_order_of_the_videos_on_any_number_of_ranks(on_one_and_two: Ranks) -> None:
    one, two = on_one_and_two
    expected = torch.tensor([0, 1, 2, 10, 20, 21, 30, 31, 32, 33])[:, None].float()
    for result in (one, *two):
        assert torch.equal(result["gathered"], expected)


def test_a_gathered_row_collects_the_gradient_of_every_rank(on_one_and_two: Ranks) -> None:
    one, two = on_one_and_two
    for result in (one, *two):
        assert torch.allclose(result["rows_grad"], 2 * result["rows"])


@pytest.mark.parametrize("scenario", ["gradient", "ema", "fsq", "text"])
def test_losses_and_gradients_are_equal_on_one_and_two_ranks(on_one_and_two: Ranks, scenario: str) -> None:
    one, two = on_one_and_two
    names = [name for name in one if name.startswith(f"{scenario}/")]
    assert any("loss" in name for name in names)
    assert any("/grad/" in name for name in names)
    for name in names:
        torch.testing.assert_close(
            two[0][name], one[name], rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("codebook", ["gradient/kmeans", "ema/codebook", "ema/kmeans", "fsq/kmeans"])
def test_the_codebook_is_identical_on_both_ranks_and_was_moved(on_one_and_two: Ranks, codebook: str) -> None:
    one, (first, second) = on_one_and_two
    assert torch.equal(first[codebook], second[codebook])
    assert (one[codebook] - one["gradient/codebook"]).abs().max() > 1e-3


def test_zero3_gives_each_of_two_ranks_half_of_the_frozen_model(on_one_and_two: Ranks) -> None:
    one, two = on_one_and_two
    elements = int(one["zero3/elements"])
    assert int(one["zero3/local_elements"]) == elements
    assert [int(result["zero3/local_elements"]) for result in two] == [elements // 2] * 2


@pytest.mark.parametrize("model", ["zero3", "zero3-fsq"])
def test_zero3_trains_on_video_then_on_characters_with_equal_losses(
    on_one_and_two: Ranks, model: str
) -> None:
    one, two = on_one_and_two
    for step in range(3):
        torch.testing.assert_close(
            two[0][f"{model}/loss{step}"], one[f"{model}/loss{step}"], rtol=1e-4, atol=1e-6
        )
    assert abs(one[f"{model}/loss1"] - one[f"{model}/loss0"]) > 1e-3  # the first step did move the weights


def test_the_codebook_of_partitioned_projections_is_identical_on_both_ranks(on_one_and_two: Ranks) -> None:
    one, (first, second) = on_one_and_two
    assert torch.equal(first["zero3-fsq/codebook"], second["zero3-fsq/codebook"])
    torch.testing.assert_close(first["zero3-fsq/codebook"], one["zero3-fsq/codebook"], **STAGE_NOISE)
    assert (one["zero3-fsq/codebook"] - one["fsq/codebook"]).abs().max() > 5e-4, "one step of Adam moved it"


def test_zero3_writes_the_same_texts_on_one_and_two_ranks(on_one_and_two: Ranks) -> None:
    one, two = on_one_and_two
    interleaved = torch.stack([two[0]["zero3/texts"], two[1]["zero3/texts"]], dim=1).flatten()
    assert torch.equal(interleaved, one["zero3/texts"])


STAGE_NOISE = {"rtol": 2e-4, "atol": 2e-6}
"""fp32 sums in another order, through three steps of Adam; losses and weights are about 0.1 to 3."""


@pytest.mark.parametrize("stage", on_ranks.STAGES)
def test_losses_codebook_and_weights_agree_on_ranks_and_stages(on_one_and_two: Ranks, stage: str) -> None:
    one, two = on_one_and_two
    names = [name.removeprefix("zero0/") for name in one if name.startswith("zero0/")]
    assert {"loss2", "perplexity2", "quantizer.codebook", "encoder.second.weight"} <= set(names)
    for result in (one, *two):
        for name in names:
            torch.testing.assert_close(result[f"{stage}/{name}"], one[f"zero0/{name}"], **STAGE_NOISE)
    first, second = (result[f"{stage}/quantizer.codebook"] for result in two)
    assert torch.equal(first, second), "the codebook has no noise at all between ranks"


@pytest.mark.parametrize("variant", ["recomputed", "hpz", "offload"])
def test_variants_of_zero3_give_the_same_losses(on_one_and_two: Ranks, variant: str) -> None:
    """Options: recomputed activations, a second copy of the shares within a node, offloading to the host."""
    one, two = on_one_and_two
    for result in (one, *two):
        for step in range(3):
            torch.testing.assert_close(result[f"{variant}/{step}"], result[f"kept/{step}"], **STAGE_NOISE)
    assert abs(one["kept/2"] - one["kept/0"]) > 1e-3, "it did learn"


def test_a_frozen_model_of_16_bits_keeps_them_under_zero3_with_32_bit_training(on_one_and_two: Ranks) -> None:
    """DeepSpeed would load 32 bits; here the partitioned model computes like the replicated one."""
    one, two = on_one_and_two
    for result in (one, *two):
        for step in range(3):
            torch.testing.assert_close(result[f"mixed3/{step}"], one[f"mixed2/{step}"], rtol=2e-3, atol=0)


@pytest.mark.parametrize("variant", ["adapted3", "adapted3recomputed"])
def test_adapters_in_a_partitioned_model_learn_as_in_a_replicated_one(
    on_one_and_two: Ranks, variant: str
) -> None:
    one, two = on_one_and_two
    for result in (one, *two):
        for step in range(4):  # the last is the norm of the adapter that moved least
            torch.testing.assert_close(result[f"{variant}/{step}"], one[f"adapted2/{step}"], **STAGE_NOISE)
    assert one["adapted2/3"] > 1e-3
    assert abs(one["adapted2/2"] - one["kept/2"]) > 1e-5, "with adapters training takes another course"


@pytest.mark.parametrize("family", ["", "t5-"])
def test_a_learnt_prompt_learns_before_a_partitioned_model_as_before_a_replicated_one(
    on_one_and_two: Ranks, family: str
) -> None:
    one, two = on_one_and_two
    last = 5 if family else 4  # losses, the norm of the vectors, for T5 the lengths of four texts
    for result in (one, *two):
        for step in range(last):
            torch.testing.assert_close(
                result[f"{family}prompted3/{step}"], one[f"{family}prompted2/{step}"], **STAGE_NOISE
            )
    without = one[f"{family}2/2" if family else "kept/2"]
    assert abs(one[f"{family}prompted2/2"] - without) > 1e-5, "with a learnt prompt training goes elsewhere"


@pytest.mark.parametrize(("family", "variant"), [("t5", "3"), ("t5", "3recomputed"), ("mbart50", "3")])
def test_an_encoder_decoder_learns_and_writes_partitioned_as_replicated(
    on_one_and_two: Ranks, family: str, variant: str
) -> None:
    one, two = on_one_and_two
    for result in (one, *two):
        for step in range(4):  # the last is the lengths of four texts
            torch.testing.assert_close(
                result[f"{family}-{variant}/{step}"], one[f"{family}-2/{step}"], **STAGE_NOISE
            )
    assert abs(one[f"{family}-2/2"] - one[f"{family}-2/0"]) > 1e-3, "it did learn"
    assert one[f"{family}-2/3"].any()


def test_in_16_bits_everything_has_16_bits_whether_it_is_cut_or_not(on_one_and_two: Ranks) -> None:
    """DeepSpeed does not cast a model if a part of it was partitioned when it was loaded."""
    one, two = on_one_and_two
    for step in range(3):
        torch.testing.assert_close(one[f"half3/{step}"], one[f"half2/{step}"], rtol=1e-5, atol=0)
        for result in two:
            torch.testing.assert_close(result[f"half3/{step}"], one[f"half2/{step}"], rtol=5e-3, atol=0)
