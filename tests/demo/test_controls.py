"""The controls: what they know is the truth or nothing, and content words are counted as by hand."""

import json
from pathlib import Path

import pytest
import torch

from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.characters import load_split_characters
from signllm.data.loading.mixture import open_mixture
from signllm.demo.controls import content_word_accuracy, save_oracle, save_untrained, true_characters
from signllm.demo.language import glosses
from signllm.demo.studio import read_truth
from signllm.recipes import find_recipe
from signllm.training.checkpoint import last_checkpoint, load_weights, read_state


def written(folder: Path, *pairs: tuple[str, str]) -> Path:
    path = folder / "hypotheses.test.jsonl"
    lines = [json.dumps({"hypothesis": hypothesis, "reference": text}) for hypothesis, text in pairs]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_content_words_are_counted_as_by_hand(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        # stay, dry, north and friday are content words: three of four are there
        ("it will stay dry in the south until friday", "it will stay dry in the north until friday"),
        # rain, move, coast, city, monday: none of five; "will" and "the" do not count
        ("it will", "rain will move from the coast to the city on monday"),
    )
    assert content_word_accuracy(path) == pytest.approx(3 / 9)


def test_content_words_reach_all_and_nothing(tmp_path: Path) -> None:
    text = "there will be heavy rain in the north on monday"
    assert content_word_accuracy(written(tmp_path, (text, text))) == 1
    assert content_word_accuracy(written(tmp_path, ("there will be in the on", text))) == 0
    assert content_word_accuracy(written(tmp_path, ("rain", "the of"))) == 0  # nothing was asked


def test_the_oracles_characters_are_the_signs_that_were_made(filmed: Path, tmp_path: Path) -> None:
    recipe = find_recipe("demo")
    save_oracle(recipe.pretrain, recipe.compose, tmp_path, filmed)
    characters, codebook = load_split_characters(tmp_path, "train")
    signed = {truth["id"]: truth["signs"] for truth in read_truth(filmed) if truth["split"] == "train"}
    assert {name: [glosses()[sign] for sign in made] for name, made in characters.items()} == signed
    words = WordCodebook.load(tmp_path)
    assert words.words == ()  # a sign is a word already
    assert words.codebook == codebook
    assert words.codes == len(glosses()) == len(load_weights(tmp_path)["quantizer.codebook"])
    assert true_characters(filmed, "test").keys() == {"test-0000", "test-0001"}


def test_the_untrained_control_took_no_step_and_is_made_once(filmed: Path, tmp_path: Path) -> None:
    config = find_recipe("demo").pretrain
    save_untrained(config, tmp_path, open_mixture(filmed / "shards"))
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint is not None
    assert read_state(checkpoint).step == 0
    weights = load_weights(tmp_path, stage="pretrain")
    codebook = weights["quantizer.codebook"]
    assert len(torch.unique(codebook, dim=0)) > 50  # centres of what the random encoder sees
    save_untrained(config, tmp_path, open_mixture(filmed / "shards"))
    assert checkpoint.stat().st_mtime_ns == last_checkpoint(tmp_path).stat().st_mtime_ns  # type: ignore[union-attr]
