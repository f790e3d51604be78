"""LoRA and learnt prompts in models of many families; attention, recomputation, quantized weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from signllm.errors import UsageError
from signllm.models.language_model import weight_quantization as language_model_quantization
from signllm.models.language_model.adapters import LoraConfig, PromptTuningConfig
from signllm.models.language_model.builder import build_language_model
from signllm.models.language_model.language_model import GenerationConfig, LanguageModel, LanguageModelConfig
from tests.models import parts
from tests.models.families import CAUSAL, ENCODER_DECODER, save_family

COUNTS = torch.tensor([3, 1])
TEXTS = ["rain in the north", "sun"]
LANGUAGES = ["German", "English"]
EVERY = [*CAUSAL, *ENCODER_DECODER]
LEARNT = PromptTuningConfig(tokens=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_family(tmp_path_factory.mktemp(name), name) for name in EVERY}


def words() -> Tensor:
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def loaded(folder: Path, **changes: object) -> LanguageModel:
    torch.manual_seed(0)
    return build_language_model(LanguageModelConfig(**{"path": str(folder), "dtype": "fp32"} | changes))


def alone(model: LanguageModel, plain: nn.Module, place: int) -> Tensor:
    """Return the loss of one text after a learnt prompt, computed by a plain model without padding."""
    part = words().split(COUNTS.tolist())[place]
    learnt = model.virtual_tokens.embedding.weight
    before, after = model.prompt.context_tokens(LANGUAGES[place])
    text = torch.tensor([*model.prompt.tokens(TEXTS[place]), 1])
    prompt = torch.cat([learnt, model.embed(before), part, model.embed(after)])
    if model.kind == "causal":
        logits = plain(inputs_embeds=torch.cat([prompt, model.embed(text.tolist())])[None]).logits
        return functional.cross_entropy(logits[0, -len(text) - 1 : -1], text, reduction="sum")
    start = model._start(LANGUAGES[place])
    decoder_input = torch.tensor([*start, *text.tolist()])[None, :-1]
    source = torch.cat([prompt, model.embed([1])])[None]
    logits = plain(inputs_embeds=source, decoder_input_ids=decoder_input).logits[0, -len(text) :]
    return functional.cross_entropy(logits, text, reduction="sum")


@pytest.mark.parametrize("name", EVERY)
def test_a_learnt_prompt_is_read_first_and_padding_changes_nothing(
    folders: dict[str, Path], name: str
) -> None:
    model = loaded(folders[name], prompt_tuning=LEARNT)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["virtual_tokens.embedding.weight"]
    result = model(words(), COUNTS, TEXTS, LANGUAGES)
    auto = AutoModelForCausalLM if model.kind == "causal" else AutoModelForSeq2SeqLM
    plain = auto.from_pretrained(folders[name])
    for place in (0, 1):
        torch.testing.assert_close(result.losses[place], alone(model, plain, place), rtol=1e-4, atol=1e-4)
    without = loaded(folders[name])(words(), COUNTS, TEXTS, LANGUAGES)
    assert [a - b for a, b in zip(result.places, without.places, strict=True)] == [5, 5]
    result.losses.sum().backward()
    assert (model.virtual_tokens.embedding.weight.grad.abs().sum(dim=1) > 0).all()
    generation = GenerationConfig(max_new_tokens=6)
    together = model.generate(words(), COUNTS, LANGUAGES, generation)
    assert together == [
        model.generate(part, torch.tensor([len(part)]), [language], generation)[0]
        for part, language in zip(words().split(COUNTS.tolist()), LANGUAGES, strict=True)
    ]


def test_a_learnt_prompt_takes_places_of_the_model(folders: dict[str, Path]) -> None:
    model = loaded(folders["llama"], prompt_tuning=PromptTuningConfig(tokens=20))
    result = model(torch.randn(60, 16), torch.tensor([60]), TEXTS[:1], ["German"])
    assert result.places == [64]
    with pytest.raises(UsageError, match="64 positions"):
        loaded(folders["llama"], prompt_tuning=PromptTuningConfig(tokens=60))(
            words()[:1], COUNTS[1:], TEXTS[:1], ["German"]
        )


def test_a_learnt_prompt_is_initialized_as_configured(folders: dict[str, Path]) -> None:
    def begun(**settings: object) -> Tensor:
        model = loaded(folders["gemma3"], prompt_tuning=PromptTuningConfig(tokens=3, **settings))
        return model.virtual_tokens.embedding.weight.detach()

    model = loaded(folders["gemma3"])
    everything = model.embed(range(len(model.model.get_input_embeddings().weight)))
    assert all((row == everything).all(dim=1).any() for row in begun())
    torch.testing.assert_close(begun(init="text", text="sun rain"), model.embed(_ids(model, "sun rain sun")))
    assert not any((row == everything).all(dim=1).any() for row in begun(init="random"))


def _ids(model: LanguageModel, text: str) -> list[int]:
    return model.prompt.tokens(text)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="tokens is 0"):
        PromptTuningConfig(tokens=0)
    for wrong in ({"init": "text"}, {"text": "sun"}):
        with pytest.raises(UsageError, match=r"prompt_tuning\.init is"):
            PromptTuningConfig(**wrong)
    with pytest.raises(UsageError, match="lora and prompt_tuning"):
        LanguageModelConfig(lora=LoraConfig(), prompt_tuning=LEARNT)


def calls_of(model: nn.Module, work: Callable[[], None]) -> int:
    """Return how often a linear layer of a block is applied during ``work``."""
    blocks = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    maps = [m for part in blocks for m in part.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1

    handles = [one.register_forward_hook(counted) for one in dict.fromkeys(maps)]
    work()
    for handle in handles:
        handle.remove()
    return count


@pytest.mark.parametrize(
    "learns", [{}, {"lora": LoraConfig(rank=2)}, {"prompt_tuning": LEARNT}], ids=["frozen", "lora", "prompt"]
)
@pytest.mark.parametrize("name", EVERY)
def test_recomputed_activations_give_the_same_gradients(
    folders: dict[str, Path], name: str, learns: dict[str, object]
) -> None:
    result = []
    if "t5" in name:  # SDPA takes another kernel there: recomputing gives T5's position bias a gradient
        learns = learns | {"attention": "eager"}
    for recompute in (False, True):
        model = loaded(folders[name], gradient_checkpointing=recompute, **learns).train()
        for n, p in model.named_parameters():
            if "lora_B" in n:
                nn.init.ones_(p)  # at zero nothing else of an adapter has a gradient
        word_vectors = words().requires_grad_()

        def work(model: LanguageModel = model, word_vectors: Tensor = word_vectors) -> None:
            model(word_vectors, COUNTS, TEXTS, LANGUAGES).losses.sum().backward()

        count = calls_of(model, work)
        trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        result.append((count, {"words": word_vectors.grad} | trained))
    (once, expected), (twice, recomputed) = result
    assert once < twice <= 2 * once  # what no gradient needs any more is not computed again
    assert len(expected) == 2 if "prompt_tuning" in learns else (len(expected) > 1) == ("lora" in learns)
    assert all(g.abs().max() > 0 for n, g in expected.items() if "lora" not in n)
    assert sum(g.abs().max() > 0 for g in expected.values()) > len(expected) / 2  # T5's attention saturates
    for n, gradient in expected.items():
        torch.testing.assert_close(recomputed[n], gradient, msg=lambda text, n=n: f"{n}: {text}")


@pytest.mark.parametrize("name", EVERY)
def test_attention_is_sdpa_by_default_and_equals_the_eager_one(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    theirs = functional.scaled_dot_product_attention

    def counted(*arguments: object, **settings: object) -> Tensor:
        used.append(name)
        return theirs(*arguments, **settings)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    losses = loaded(folders[name])(words(), COUNTS, TEXTS, LANGUAGES).losses
    assert used
    used.clear()
    eager = loaded(folders[name], attention="eager")(words(), COUNTS, TEXTS, LANGUAGES).losses
    assert not used
    torch.testing.assert_close(losses, eager, rtol=1e-4, atol=1e-4)


def test_flash_attention_that_cannot_be_had_is_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(message: str, **changes: object) -> None:
        with pytest.raises(UsageError, match=message):
            loaded(folders["llama"], attention="flash_attention_2", **changes)

    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "flash_attn" else there(name, *rest)
    )
    refused("flash attention is not installed here")
    monkeypatch.setattr(importlib.util, "find_spec", there)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: there("math" if name == "flash_attn" else name, *rest),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("flash attention needs a GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    refused("16 bits")


def test_quantised_weights_that_cannot_be_had_are_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"zero_optimization": {"stage": 3}}
    with pytest.raises(UsageError, match="ZeRO-3 cannot partition a quantized") as cut:
        build_language_model(
            LanguageModelConfig(path=str(folders["llama"]), quantize="4bit"), deepspeed=settings
        )
    assert "--training.deepspeed zero2" in cut.value.remedy
    there = importlib.util.find_spec
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for installed, message in ((False, "bitsandbytes is not installed"), (True, "needs a CUDA device")):
        module = "math" if installed else "no_such_module"
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest, module=module: there(module if name == "bitsandbytes" else name, *rest),
        )
        for bits in ("4bit", "8bit"):
            with pytest.raises(UsageError, match=message):
                loaded(folders["llama"], quantize=bits)


def round_off(plain: nn.Module, quantised: nn.Module) -> None:
    """Set the linear layers of a plain model to the weights that a quantized model computes with."""
    from bitsandbytes.functional import dequantize_4bit

    theirs = {name.replace(".base_layer", ""): p for name, p in quantised.named_parameters()}
    for name, p in plain.named_parameters():
        weight = theirs[name]
        if weight.dtype == torch.uint8:
            p.data = dequantize_4bit(weight.data, weight.quant_state).to(p.dtype)


@pytest.mark.parametrize("learns", [{}, {"lora": LoraConfig(rank=2)}], ids=["frozen", "qlora"])
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantized_model_has_nearly_the_original_losses_and_passes_gradients(
    tmp_path: Path, bits: str, learns: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package bitsandbytes runs on a CPU for tests, although users are refused there."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(language_model_quantization, "device", lambda: torch.device("cpu"))
    parts.save_language_model(tmp_path, width=64)
    signs = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model = loaded(tmp_path, dtype="bf16", quantize=bits, gradient_checkpointing=True, **learns).train()
    plain = loaded(tmp_path, dtype="bf16", **learns)
    inner = model.model.get_base_model() if learns else model.model
    weight = inner.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == {"4bit": torch.uint8, "8bit": torch.int8}[bits]
    if bits == "4bit":
        assert (weight.quant_type, weight.compress_statistics) == ("nf4", True)
        assert inner.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16
    result = model(signs, COUNTS, TEXTS, LANGUAGES)
    expected = plain(signs, COUNTS, TEXTS, LANGUAGES)
    assert not torch.equal(result.losses, expected.losses), "it is quantised"
    rounded = loaded(tmp_path, dtype="bf16")
    round_off(rounded.model, inner)  # 4 bits of random weights say little; 8 bits round what goes in as well
    close = {"4bit": 0.02, "8bit": 0.1}[bits]
    rounded = rounded(signs, COUNTS, TEXTS, LANGUAGES)
    torch.testing.assert_close(result.losses, rounded.losses, rtol=close, atol=close)
    assert result.operations == expected.operations
    result.losses.sum().backward()
    assert (signs.grad.abs().sum(dim=1) > 0).all()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert bool(trained) == bool(learns)
    assert all(p.grad is not None for p in trained)
    assert len(model.eval().generate(signs, COUNTS, LANGUAGES, GenerationConfig(max_new_tokens=4))) == 2
