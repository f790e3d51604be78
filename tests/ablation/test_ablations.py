"""Each ablation takes away what it says and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from signllm.ablation.ablations import ABLATIONS, Given, chosen, title
from signllm.config import Recipe, differences
from signllm.errors import UsageError
from signllm.recipes import demo, phoenix2014t

CHANGES = {
    "full": [],
    "no_vq": [
        "pretrain.vq_sign.quantizer.update: ema -> none",
        "pretrain.vq_sign.quantizer.revive_dead_after: 30 -> 0",
    ],
    "characters": ["compose.words.size: None -> 0"],
    "bpe": [
        "compose.words.size: None -> 57",
        "compose.words.segmentation: viterbi -> bpe",
        "compose.words.transport.keep_share: 0.02 -> 0.0",
    ],
    "no_mmd": ["finetune.sign_llm.mmd_weight: 0.5 -> 0.0"],
    "no_pretraining": [
        "pretrain.vq_sign.encoder.whitened_start: True -> False",
        "pretrain.training.steps: None -> 0",
    ],
    "no_context": ["pretrain.vq_sign.context_weight: 1.0 -> 0.0"],
    "half_codes": ["pretrain.vq_sign.quantizer.codes: 192 -> 96"],
    "double_codes": ["pretrain.vq_sign.quantizer.codes: 192 -> 384"],
    "frozen_encoder": ["finetune.frozen_epochs: 6 -> 7"],
    "lora": ["finetune.sign_llm.language_model.lora: None -> LoraConfig"],
    "encoder_decoder": ["finetune.sign_llm.language_model.path: language-model -> t5"],
}
GIVEN = Given(encoder_decoder_llm="t5", words=57)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_what_it_says_and_nothing_else(name: str) -> None:
    found = differences(demo(), ABLATIONS[name](demo(), GIVEN))
    assert [line.partition("(")[0] for line in found] == CHANGES[name]


@pytest.mark.parametrize("name", sorted(ABLATIONS.keys() - {"full"}))
def test_every_ablation_can_be_made_of_the_paper_s_recipe(name: str) -> None:
    made = ABLATIONS[name](phoenix2014t(), GIVEN)
    assert isinstance(made, Recipe)
    assert made != phoenix2014t()


def test_by_default_all_that_are_possible_in_the_order_of_the_table() -> None:
    assert chosen((), GIVEN) == list(ABLATIONS)
    assert chosen((), Given()) == [name for name in ABLATIONS if name != "encoder_decoder"]
    assert chosen(("no_mmd", "full"), Given()) == ["full", "no_mmd"]


def test_what_cannot_be_made_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match="did you mean no_mmd"):
        chosen(("no_mdm",), Given())
    with pytest.raises(UsageError, match="--encoder-decoder-llm"):
        ABLATIONS["encoder_decoder"](demo(), Given())
    steps = replace(demo().finetune, training=replace(demo().finetune.training, epochs=None, steps=9))
    with pytest.raises(UsageError, match="whole epochs"):
        ABLATIONS["frozen_encoder"](replace(demo(), finetune=replace(steps, frozen_epochs=0)), Given())


def test_titles_are_one_line_and_apart() -> None:
    titles = [title(name) for name in ABLATIONS]
    assert len(set(titles)) == len(titles)
    assert all(len(one) < 60 and not one.endswith(".") for one in titles)
    assert title("gone") == "gone"
