"""An export translates like its run, also after it has been moved, and peft can read its adapters."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import signllm
from signllm import cli
from signllm.config import FinetuneConfig, load_config
from signllm.errors import UsageError
from signllm.inference.evaluate import EvaluateConfig, evaluate
from signllm.inference.export import export
from signllm.models.language_model.language_model import LoraConfig, PromptTuningConfig
from signllm.stages.trained_model import load_sign_llm, read_trained_model
from tests.inference import trained
from tests.models.families import save_family


@pytest.mark.parametrize("with_llm", [False, True], ids=["by reference", "inside"])
def test_an_export_translates_like_its_run(
    trained_folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, with_llm: bool
) -> None:
    video = trained_folder / "videos" / "clip2.mp4"
    expected = signllm.load(run).translate(video)
    flags = ["--with-llm"] if with_llm else []
    assert cli.main(["export", str(tmp_path / "out"), "--run", str(run), *flags]) == 0
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    shutil.rmtree(run)
    translation = signllm.load(moved).translate(video)
    assert (translation.text, translation.words) == (expected.text, expected.words)
    capsys.readouterr()
    assert cli.main(["translate", str(video), "--run", str(moved)]) == 0
    assert expected.text in capsys.readouterr().out
    kinds = {path.suffix for path in moved.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".md", ".jinja"}
    assert (moved / "language-model").exists() == with_llm


def test_the_card_contains_scores_with_their_signature(run: Path, shards: Path, tmp_path: Path) -> None:
    without = (export(run, tmp_path / "without") / "README.md").read_text()
    assert "None were computed" in without
    scores = evaluate(run, shards, "test", EvaluateConfig(batch_size=3))
    card = (export(run, tmp_path / "with") / "README.md").read_text()
    assert f"| {scores['bleu4']:.2f} |" in card
    assert scores["signature"] in card.replace(r"\|", "|")
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {11}, "every row has nine cells"
    assert "step-00000001" in card
    assert "Apache-2.0" in card


def test_peft_reads_the_adapters(trained_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel  # imports Triton, which tests/kernels sets up first

    lora = LoraConfig(rank=2)
    run = trained.write_run(tmp_path / "run", trained_folder / "llm", lora=lora)
    out = export(run, tmp_path / "out")
    config = load_config(out, FinetuneConfig)
    assert config.sign_llm.language_model.lora == lora
    plain = AutoModelForCausalLM.from_pretrained(trained_folder / "llm")
    peft_model = PeftModel.from_pretrained(plain, out / "adapter").eval()
    exported = load_sign_llm(out)
    tokens = torch.tensor([[1, 5, 7, 3]])
    expected = load_sign_llm(run).language_model.model(tokens).logits
    torch.testing.assert_close(peft_model(tokens).logits, expected)
    torch.testing.assert_close(exported.language_model.model(tokens).logits, expected)
    assert (
        expected - AutoModelForCausalLM.from_pretrained(trained_folder / "llm")(tokens).logits
    ).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "mbart50"])
def test_peft_reads_a_learnt_prompt(tmp_path: Path, family: str) -> None:
    from peft import PeftModel

    llm, learnt = save_family(tmp_path / "llm", family), PromptTuningConfig(tokens=3)
    run = trained.write_run(tmp_path / "run", llm, prompt_tuning=learnt)
    out = export(run, tmp_path / "out")
    auto = AutoModelForCausalLM if family == "llama" else AutoModelForSeq2SeqLM
    peft_model = PeftModel.from_pretrained(auto.from_pretrained(llm), out / "adapter").eval()
    exported, before = load_sign_llm(out).language_model, load_sign_llm(run).language_model
    vectors = before.virtual_tokens.embedding.weight
    assert torch.equal(peft_model.get_prompt(batch_size=2)[1], vectors)
    assert torch.equal(exported.virtual_tokens.embedding.weight, vectors)
    places = torch.randn(1, 4, 16)
    extra_inputs = {} if family == "llama" else {"decoder_input_ids": torch.tensor([[1, 4, 7]])}
    expected = exported.model(inputs_embeds=torch.cat([vectors[None], places], dim=1), **extra_inputs).logits
    torch.testing.assert_close(peft_model(inputs_embeds=places, **extra_inputs).logits, expected)
    assert "a learnt prompt of 3 vectors" in (out / "README.md").read_text()


def test_adapters_of_a_model_with_buffers_can_be_loaded(tmp_path: Path) -> None:
    """The bias of the output layer of mBART is a buffer, which is in no checkpoint and no export."""
    llm = save_family(tmp_path / "llm", "mbart50")
    out = export(trained.write_run(tmp_path / "run", llm, lora=LoraConfig(rank=2)), tmp_path / "out")
    written = load_file(out / "adapter" / "adapter_model.safetensors")
    assert written
    assert all("lora_" in name for name in written)
    load_sign_llm(out)


def test_errors_leave_no_files(run: Path, tmp_path: Path, trained_folder: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(UsageError, match="there is no best one"):
        export(run, tmp_path / "out", best=True)
    assert not list(tmp_path.glob("*out*"))
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        export(run, tmp_path / "out")
    out = export(run, tmp_path / "model")
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UsageError, match="weights cannot be read"):
        signllm.load(out)
    (out / "model.safetensors").write_bytes(weights)
    record = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(record | {"format": 99, "signllm": "9.0"}))
    with pytest.raises(UsageError, match=r"written by signllm 9\.0"):
        signllm.load(out)


def test_a_missing_language_model_is_named(trained_folder: Path, tmp_path: Path) -> None:
    llm = Path(shutil.copytree(trained_folder / "llm", tmp_path / "llm"))
    out = export(trained.write_run(tmp_path / "run", llm), tmp_path / "out")
    shutil.rmtree(llm)
    with pytest.raises(UsageError, match=r"no language model(.|\n)*signllm\.load\(.*llm=FOLDER"):
        signllm.load(out)
    elsewhere = signllm.load(out, llm=str(trained_folder / "llm")).model.language_model
    assert elsewhere.config.path == str(trained_folder / "llm")
    config = load_config(out, FinetuneConfig)
    assert config == read_trained_model(tmp_path / "run").config, (
        "settings that an older run did not record are filled in"
    )
