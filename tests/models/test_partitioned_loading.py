"""The assignment of stored tensors to weights when each rank reads its own part of the files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from signllm.models.language_model.partitioned_loading import (
    WeightFiles,
    build_without_weights,
    locate_weights,
)
from tests.models.families import CAUSAL, ENCODER_DECODER, save_family

Ranks = tuple[dict[str, Tensor], list[dict[str, Tensor]]]


def places(folder: Path) -> dict[tuple[str, ...], str] | None:
    settings = AutoConfig.from_pretrained(folder)
    auto = AutoModelForSeq2SeqLM if settings.is_encoder_decoder else AutoModelForCausalLM
    model = build_without_weights(auto, settings, dtype=torch.float32)
    assert all(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())
    with ExitStack() as stack:
        return locate_weights(model, WeightFiles(folder, stack))


def change(folder: Path, changed: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file({name: t.clone() for name, t in changed(load_file(file)).items()}, file, {"format": "pt"})


@pytest.mark.parametrize("name", [*CAUSAL, *ENCODER_DECODER])
def test_every_weight_of_every_family_is_located(tmp_path: Path, name: str) -> None:
    result = places(save_family(tmp_path, name))
    stored = load_file(tmp_path / "model.safetensors")
    assert set(result.values()) | {"final_logits_bias"} == set(stored) | {"final_logits_bias"}


def test_names_without_the_models_prefix_and_by_either_of_two_names(tmp_path: Path) -> None:
    save_family(tmp_path, "gpt2")
    complete = places(tmp_path)
    tied = ("transformer.wte.weight", "lm_head.weight")
    assert complete[tied] == "transformer.wte.weight"
    change(tmp_path, lambda stored: {n.removeprefix("transformer."): t for n, t in stored.items()})
    assert places(tmp_path) == {names: key.removeprefix("transformer.") for names, key in complete.items()}
    change(tmp_path, lambda stored: {n.replace("wte.weight", "lm_head.weight"): t for n, t in stored.items()})
    assert places(tmp_path)[tied] == "lm_head.weight"
    change(tmp_path, lambda stored: stored | {"wte.weight": stored["lm_head.weight"]})
    assert places(tmp_path)[tied] in ("wte.weight", "lm_head.weight")
    change(tmp_path, lambda stored: stored | {"wte.weight": stored["wte.weight"] + 1})
    assert places(tmp_path) is None, "two weights are stored where the configuration wants one"


def test_a_wrong_shape_is_an_error_and_missing_weights_are_left_to_transformers(tmp_path: Path) -> None:
    save_family(tmp_path, "llama")
    change(tmp_path, lambda stored: stored | {"lm_head.weight": stored["lm_head.weight"].T.contiguous()})
    with pytest.raises(
        ValueError, match=r"lm_head\.weight .* \(16, 21\) in model\.safetensors, \(21, 16\) in"
    ):
        places(tmp_path)
    change(tmp_path, lambda stored: {n: t for n, t in stored.items() if n != "lm_head.weight"})
    assert places(tmp_path) is None


def test_pieces_of_two_ranks_are_the_weights_of_the_file(on_one_and_two: Ranks) -> None:
    """One family is stored in another form, which ``transformers`` loads."""
    one, two = on_one_and_two
    for result in (one, *two):
        loaded = {name: value for name, value in result.items() if name.startswith("loaded/")}
        assert len(loaded) == len(CAUSAL) + len(ENCODER_DECODER) + 1
        assert not any(map(bool, loaded.values())), loaded
    assert {bool(result["stored-otherwise"]) for result in (one, *two)} == {True}
