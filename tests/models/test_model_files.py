"""Folders that users give: git-lfs pointers, damaged files, other things than models, quantized models."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from signllm.errors import UsageError
from signllm.models.language_model import weight_quantization as language_model_quantization
from signllm.models.language_model.builder import build_language_model
from signllm.models.language_model.language_model import LanguageModelConfig
from signllm.models.language_model.loading import load_model, load_tokenizer, read_configuration
from signllm.models.language_model.model_files import model_folder
from tests.models.families import save_family

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n".format("0" * 64)
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("saved"), "llama", chat=True)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refused(folder: Path, **changes: Any) -> str:
    with pytest.raises(UsageError) as raised:
        build_language_model(LanguageModelConfig(**{"path": str(folder), "dtype": "fp32"} | changes))
    assert raised.value.remedy
    return str(raised.value)


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "chat_template.jinja"],
)
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text(LFS_POINTER)
    message = refused(folder)
    assert f"{name} is a git-lfs pointer" in message
    assert str(folder / name) in message
    assert "git lfs pull" in message


def test_pointers_in_place_of_files_that_are_not_read_do_no_harm(folder: Path) -> None:
    for name in ("pytorch_model.bin", "flax_model.msgpack", "onnx.gguf", "consolidated.safetensors"):
        (folder / name).write_text(LFS_POINTER)
    build_language_model(LanguageModelConfig(path=str(folder), dtype="fp32"))


def test_a_pointer_among_several_files_of_weights_is_named(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_text(LFS_POINTER)
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert "model-00002-of-00002.safetensors is a git-lfs pointer" in refused(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refused(folder)
    (folder / "model.safetensors.index.json").write_text(LFS_POINTER)
    assert "model.safetensors.index.json is a git-lfs pointer" in refused(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "model.safetensors.index.json is missing" in refused(folder)


def test_newer_and_damaged_tokenizer_files_have_different_errors(folder: Path) -> None:
    import tokenizers

    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"model": {"type": "Quantum", "vocab": {}}}))
    message = refused(folder)
    assert str(file) in message
    assert f"tokenizers {tokenizers.__version__}" in message
    assert "pip install -U tokenizers" in message
    file.write_text(json.dumps(content | {"pre_tokenizer": {"type": "FromTheFuture"}}))
    assert "pip install -U tokenizers" in refused(folder)
    file.write_text(json.dumps(content)[:-40])
    message = refused(folder)
    assert "tokenizer.json is truncated or damaged" in message
    assert "pip install" not in message
    file.write_text("")
    assert "tokenizer.json is empty" in refused(folder)


def test_a_model_of_a_newer_kind_names_the_update(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama99"}))
    message = refused(folder)
    assert "llama99" in message
    assert "pip install -U transformers" in message
    (folder / "config.json").write_text(json.dumps(config)[:30])
    assert "config" in refused(folder)


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is here")
@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "tokenizer.model"])
def test_a_tokenizer_of_sentencepiece_alone_names_the_package(folder: Path, name: str) -> None:
    (folder / "tokenizer.json").unlink()
    message = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(message | {"tokenizer_class": "T5Tokenizer"}))
    (folder / name).write_bytes(b"\n\x0e\n\x05<pad>\x15\x00\x00\x00\x00\x18\x03" * 100)
    message = refused(folder)
    assert name in message
    assert "pip install sentencepiece" in message


def test_weights_that_are_cut_off_or_damaged_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for damaged in (content[:-100], content[:50], b"\x00" * 4096, content[: len(content) // 2]):
        file.write_bytes(damaged)
        message = refused(folder)
        assert "model.safetensors is truncated or damaged" in message
        assert str(file) in message
    file.write_bytes(b"")
    assert "model.safetensors is empty" in refused(folder)


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    (folder / "adapter_model.safetensors").write_bytes(b"")


OTHERS: dict[str, tuple[Change, str, str]] = {
    "adapter": (_adapter, "adapter of org/base", "merge_and_unload"),
    "gguf": (lambda folder: (folder / "m.Q4_K_M.gguf").write_bytes(b"GGUF"), "m.Q4_K_M.gguf", "safetensors"),
    "empty": (lambda folder: None, "is empty", "give the folder"),
    "tokenizer alone": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "no config.json",
        "give",
    ),
    "original": (
        lambda folder: (folder / "params.json").write_text("{}"),
        "params.json",
        "format of transformers",
    ),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_a_folder_of_something_else_says_what_it_is(tmp_path: Path, name: str) -> None:
    make, what, remedy = OTHERS[name]
    make(tmp_path)
    message = refused(tmp_path)
    assert what in message
    assert remedy in message


def test_the_folder_above_a_model_in_the_cache_names_the_model(tmp_path: Path) -> None:
    inner = tmp_path / "snapshots" / "abc"
    inner.mkdir(parents=True)
    (inner / "config.json").write_text("{}")
    assert str(inner) in refused(tmp_path)
    assert model_folder(str(inner)) == inner


def test_a_configuration_with_adapter_weights_alone_names_the_base(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    _adapter(folder)
    assert "adapter of org/base" in refused(folder)


QUANTISED: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "_load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "dataset": "c4"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
}
ZERO3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize("name", list(QUANTISED))
def test_a_checkpoint_that_is_quantised_already_is_refused_under_zero3(folder: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTISED[name]}))
    with pytest.raises(UsageError) as raised:
        load_model(str(folder), "causal", dtype="bf16", deepspeed=ZERO3)
    message = str(raised.value)
    assert "already quantized" in message
    assert name in message
    assert "zero2" in message
    assert "original" in message


def test_a_checkpoint_that_is_quantised_already_is_not_quantised_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTISED["gptq"]}))
    monkeypatch.setattr(language_model_quantization, "device", lambda: 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    message = refused(folder, quantize="4bit")
    assert "already quantized (gptq)" in message
    assert "quantize" in message


@pytest.mark.parametrize("method", ["gptq", "unheard-of"])
def test_the_packages_that_a_quantized_checkpoint_needs_are_named(folder: Path, method: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": method, "bits": 4, "group_size": 128, "dataset": "c4"}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    message = refused(folder)
    assert f"already quantized ({method})" in message
    assert "original" in message


def test_a_complete_folder_is_loaded(saved: Path) -> None:
    assert load_tokenizer(str(saved)).eos_token == "</s>"
    assert read_configuration(str(saved)).model_type == "llama"
