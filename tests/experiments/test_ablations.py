"""Each ablation changes the settings that it names and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from signllm.config import Recipe, differences
from signllm.errors import UsageError
from signllm.experiments.ablations import (
    ABLATIONS,
    AblationInputs,
    ablation_title,
    nearest_levels,
    select_ablations,
)
from signllm.recipes import demo, phoenix2014t

CHANGES = {
    "full": [],
    "no_vq": [
        "pretrain.vq_sign.quantizer.update: ema -> none",
        "pretrain.vq_sign.quantizer.revive_dead_after: 30 -> 0",
    ],
    "fsq": [
        "pretrain.vq_sign.quantizer.codes: 192 -> 200",
        "pretrain.vq_sign.quantizer.update: ema -> fsq",
        "pretrain.vq_sign.quantizer.levels: ",
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
INPUTS = AblationInputs(encoder_decoder_llm="t5", words=57)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_only_its_own_settings(name: str) -> None:
    changes = differences(demo(), ABLATIONS[name](demo(), INPUTS))
    assert [line.partition("(")[0] for line in changes] == CHANGES[name]


@pytest.mark.parametrize("name", sorted(ABLATIONS.keys() - {"full"}))
def test_the_paper_s_recipe_allows_every_ablation(name: str) -> None:
    recipe = ABLATIONS[name](phoenix2014t(), INPUTS)
    assert isinstance(recipe, Recipe)
    assert recipe != phoenix2014t()


@pytest.mark.parametrize(
    ("codes", "levels"), [(2, (5,)), (12, (8,)), (192, (8, 5, 5)), (256, (7, 6, 6)), (1024, (8, 5, 5, 5))]
)
def test_the_levels_of_fsq_have_nearly_as_many_codes(codes: int, levels: tuple[int, ...]) -> None:
    assert nearest_levels(codes) == levels


def test_a_recipe_with_fsq_allows_the_ablations_of_the_quantizer() -> None:
    recipe = ABLATIONS["fsq"](demo(), INPUTS)
    quantizers = {
        name: ABLATIONS[name](recipe, INPUTS).pretrain.vq_sign.quantizer
        for name in ("no_vq", "fsq", "half_codes", "double_codes")
    }
    assert {name: (q.codes, q.levels) for name, q in quantizers.items()} == {
        "no_vq": (200, ()),
        "fsq": (200, (8, 5, 5)),
        "half_codes": (125, (5, 5, 5)),
        "double_codes": (392, (8, 7, 7)),
    }


def test_by_default_every_possible_ablation_is_selected_in_order() -> None:
    assert select_ablations((), INPUTS) == list(ABLATIONS)
    assert select_ablations((), AblationInputs()) == [name for name in ABLATIONS if name != "encoder_decoder"]
    assert select_ablations(("no_mmd", "full"), AblationInputs()) == ["full", "no_mmd"]


def test_errors_name_what_is_missing() -> None:
    with pytest.raises(UsageError, match="did you mean no_mmd"):
        select_ablations(("no_mdm",), AblationInputs())
    with pytest.raises(UsageError, match="--encoder-decoder-llm"):
        ABLATIONS["encoder_decoder"](demo(), AblationInputs())
    steps = replace(demo().finetune, training=replace(demo().finetune.training, epochs=None, steps=9))
    with pytest.raises(UsageError, match="whole epochs"):
        ABLATIONS["frozen_encoder"](
            replace(demo(), finetune=replace(steps, frozen_epochs=0)), AblationInputs()
        )


def test_titles_are_short_and_distinct() -> None:
    titles = [ablation_title(name) for name in ABLATIONS]
    assert len(set(titles)) == len(titles)
    assert all(len(title) < 60 and not title.endswith(".") for title in titles)
    assert ablation_title("gone") == "gone"
