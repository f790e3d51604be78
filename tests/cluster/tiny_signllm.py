"""The command line with a recipe ``tiny``: the three stages as the tests of the stages configure them."""

from __future__ import annotations

from signllm import recipes
from signllm.__main__ import run
from tests.stages import path


def tiny() -> recipes.Recipe:
    """Return the recipe; stage 3, which wants a language model, is not configured."""
    paper = recipes.find_recipe("phoenix2014t")
    return recipes.Recipe(pretrain=path.PRETRAIN, compose=path.COMPOSE, finetune=paper.finetune)


if __name__ == "__main__":
    recipes.RECIPES["tiny"] = tiny
    run()
