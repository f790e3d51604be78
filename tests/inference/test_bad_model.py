"""Unusable language models and exports: the command line prints one message and exits with code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from signllm import cli
from signllm.inference.export import export
from signllm.models.language_model.language_model import LoraConfig, PromptTuningConfig
from tests.inference import trained
from tests.models import parts
from tests.models.families import save_family

AssertError = Callable[..., None]


@pytest.fixture
def assert_error(trained_folder: Path, capsys: pytest.CaptureFixture[str]) -> AssertError:
    """A function that translates a video, which must fail with a message of three lines with these texts."""

    def translate(out: Path, *texts: str) -> None:
        capsys.readouterr()
        assert cli.main(["translate", str(trained_folder / "videos" / "clip1.mp4"), "--run", str(out)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert "Traceback" not in output.err
        what, where, remedy = output.err[output.err.index("signllm: ") :].splitlines()
        assert where.startswith("  where:  ")
        assert remedy.startswith("  remedy: ")
        for text in texts:
            assert text in " ".join((what, where, remedy)), output.err

    return translate


def with_model(out: Path, llm: Path | str) -> Path:
    """Change the language model that an export names."""
    record = json.loads((out / "config.json").read_text())
    record["config"]["sign_llm"]["language_model"]["path"] = str(llm)
    (out / "config.json").write_text(json.dumps(record))
    return out


def test_incomplete_language_models(
    run: Path, trained_folder: Path, tmp_path: Path, assert_error: AssertError
) -> None:
    out, wide = export(run, tmp_path / "out"), parts.save_language_model(tmp_path / "wide", width=32)

    def copy(name: str, **change: str) -> Path:
        folder = Path(shutil.copytree(trained_folder / "llm", tmp_path / name))
        return with_model(out, folder) and folder

    (copy("wordless") / "tokenizer.json").unlink()
    assert_error(out, "has no tokenizer", "wordless", "tokenizer from the original model")
    (copy("weightless") / "model.safetensors").unlink()
    assert_error(out, "no model.safetensors", "weightless", "download the model again")
    pickled = copy("pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    assert_error(out, "a pickle, pytorch_model.bin", "as safetensors")
    torn = copy("torn")
    torn.joinpath("model.safetensors").write_bytes(
        (trained_folder / "llm" / "model.safetensors").read_bytes()[:900]
    )
    assert_error(out, "model.safetensors is truncated or damaged", "torn", "again")
    other = copy("other")
    (other / "model.safetensors").write_bytes((wide / "model.safetensors").read_bytes())
    assert_error(out, "config.json", "other")
    incomplete = copy("incomplete")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (incomplete / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_error(out, "2 of 2 weight files are missing", "model-1-of-2", "download or copy")
    shutil.rmtree(tmp_path / "out")
    out = export(run, tmp_path / "out")
    partly = copy("partly")
    remove_weight(partly / "model.safetensors", "lm_head.weight")
    assert_error(out, "1 weights of the language model are missing in its files, first lm_head.weight")


def remove_weight(file: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    save_file({n: tensor for n, tensor in load_file(file).items() if n != name}, file, {"format": "pt"})


def test_a_language_model_that_is_not_on_this_machine_is_named_with_the_way_to_fetch_it(
    run: Path, tmp_path: Path, assert_error: AssertError
) -> None:
    out = with_model(export(run, tmp_path / "out"), "meta-llama/Llama-9")
    assert_error(out, "there is no language model", "hf download meta-llama/Llama-9", "llm=FOLDER")


def test_an_export_of_a_newer_version(run: Path, tmp_path: Path, assert_error: AssertError) -> None:
    out = export(run, tmp_path / "out")
    record = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(record | {"format": 99, "signllm": "9.0"}))
    assert_error(out, "written by signllm 9.0", "use the signllm that wrote it")
    record["config"]["sign_llm"]["language_model"]["mood"] = "merry"
    (out / "config.json").write_text(json.dumps(record))
    assert_error(out, "no setting 'sign_llm.language_model.mood'")


def test_an_export_with_another_language_model_than_its_own(
    run: Path, trained_folder: Path, tmp_path: Path, assert_error: AssertError
) -> None:
    wide = parts.save_language_model(tmp_path / "wide", width=32)
    narrow = save_family(tmp_path / "gpt2", "gpt2")
    assert_error(
        with_model(export(run, tmp_path / "plain"), wide),
        "trained for vectors of width 16, this language model reads 32",
        "use the language model of the training",
    )
    for name, learns in (
        ("lora", {"lora": LoraConfig(rank=2)}),
        ("prompt", {"prompt_tuning": PromptTuningConfig(tokens=2)}),
    ):
        adapted = trained.write_run(tmp_path / f"run-{name}", trained_folder / "llm", **learns)
        out = with_model(export(adapted, tmp_path / name), narrow)
        assert_error(out, "trained in a LlamaForCausalLM, this is a GPT2LMHeadModel", str(narrow))
    run = with_model(tmp_path / "run-lora", narrow)  # a run does not record the class of the model
    assert_error(run, "adapters have no place in this language model", "q_proj")
