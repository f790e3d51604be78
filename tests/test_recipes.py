"""The recipes hold the paper's numbers and survive config.json."""

from pathlib import Path

import pytest

from signllm import recipes
from signllm.config import load_config, save_config
from signllm.errors import UsageError
from signllm.training.engine import deepspeed_settings


@pytest.mark.parametrize("name", ["phoenix2014t", "how2sign"])
def test_the_numbers_of_the_paper(name: str) -> None:
    recipe = recipes.find_recipe(name)
    vq_sign = recipe.pretrain.vq_sign
    assert vq_sign.encoder.backbone == "resnet18"
    assert vq_sign.encoder.width == 1024
    assert vq_sign.quantizer.codes == 256
    assert vq_sign.quantizer.commitment == 0.25
    assert vq_sign.quantizer.update == "gradient"
    assert vq_sign.predictor.steps == 3
    assert not vq_sign.encoder.subtract_video_mean
    assert (recipe.pretrain.training.epochs, recipe.pretrain.training.learning_rate) == (200, 0.01)
    assert recipe.compose.words.increment == 32
    assert (recipe.finetune.training.epochs, recipe.finetune.training.learning_rate) == (20, 0.001)
    assert recipe.finetune.frozen_epochs == 0
    assert (recipe.finetune.sign_llm.mmd_weight, recipe.finetune.sign_llm.sim_weight) == (0.5, 1.0)
    assert recipe.finetune.sign_llm.language_model.lora is None
    assert recipe.finetune.sign_llm.language_model.dtype == "bf16"
    assert recipe.finetune.training.deepspeed == "zero3"


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_a_recipe_agrees_with_itself(name: str, tmp_path: Path) -> None:
    recipe = recipes.find_recipe(name)
    assert len({recipe.pretrain.data.size, recipe.compose.data.size, recipe.finetune.data.size}) == 1
    for stage in (recipe.pretrain, recipe.compose, recipe.finetune):
        save_config(tmp_path, stage)
        assert load_config(tmp_path, type(stage)) == stage
    for training in (recipe.pretrain.training, recipe.finetune.training):
        assert deepspeed_settings(training, world=2)["train_micro_batch_size_per_gpu"] >= 1


def test_every_recipe_says_where_its_numbers_are_from() -> None:
    for make in recipes.RECIPES.values():
        assert make.__doc__


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'phoenix2014t'"):
        recipes.find_recipe("phoenix-2014t")


@pytest.mark.parametrize("name", ["csl_daily", "llm_scaling"])
def test_a_removed_alias_names_the_recipe_that_it_was(name: str) -> None:
    with pytest.raises(UsageError, match="phoenix2014t"):
        recipes.find_recipe(name)
