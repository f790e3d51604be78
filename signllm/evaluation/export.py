"""``signllm export``: what a run has learnt as one folder that others can use, with a card.

    config.json           settings of the run, and its data by checksum
    model.safetensors     all that was trained: encoder, codebook, word vectors, projector
    words.json/.safetensors
    adapter/              adapters, in peft's own format, if there are any
    language-model/       a copy of the frozen language model, if asked for; else it is named in config.json
    README.md             the card: data, scores with their signature, settings, licences, how to use it

Nothing of it is a pickle. :func:``signllm.load` and ``signllm translate`` read it like a run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from signllm.atomic_files import report_full_disk
from signllm.config import FinetuneConfig, datasets_of, load_config, save_config
from signllm.errors import UsageError
from signllm.evaluation.model_card import model_card
from signllm.models.adapters import BASE_CLASS, build_peft_config, is_adapter, to_peft
from signllm.models.generation import library_settings
from signllm.models.language_model_builder import build_prompt
from signllm.models.language_model_loading import load_tokenizer, read_configuration
from signllm.models.model_files import model_folder
from signllm.stages.trained_model import (
    ADAPTER_FOLDER,
    LANGUAGE_MODEL,
    WEIGHTS,
    TrainedModel,
    read_trained_model,
)
from signllm.training.checkpoint import best_checkpoint, complete_checkpoint

if TYPE_CHECKING:
    from torch import Tensor


def export(run: Path, out: Path, *, best: bool = False, with_llm: bool = False) -> Path:
    """Write an export of a fine-tuned run; the folder appears at the end, whole.

    Args:
        run: folder of stage 3.
        out: a folder that is not there yet.
        best: its best validated checkpoint instead of the last.
        with_llm: copy the frozen language model into it.

    Returns:
        ``out``.

    Raises:
        UsageError: not a fine-tuned run, no such checkpoint, ``out`` is there, no language model, or the disk
            is full.
    """
    if out.exists():
        raise UsageError("this folder is there already", where=out, remedy="name one that is not")
    load_config(run, FinetuneConfig)  # a run of another stage is told as such
    checkpoint = best_checkpoint(run) if best else complete_checkpoint(run)
    found = read_trained_model(run, checkpoint)
    unfinished = out.with_name(f".{out.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with report_full_disk(out):
            unfinished.mkdir(parents=True)
            _write(found, run, checkpoint.name, unfinished, with_llm=with_llm)
            unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def _write(found: TrainedModel, run: Path, checkpoint: str, folder: Path, *, with_llm: bool) -> None:
    from safetensors.torch import save_file

    config = _portable(found.config)
    save_config(folder, config, datasets_of(run))
    found.words.save(folder)
    adapters = {name: tensor for name, tensor in found.weights.items() if is_adapter(name)}
    rest = {name: tensor for name, tensor in found.weights.items() if name not in adapters}
    save_file(rest, folder / WEIGHTS)
    if adapters:
        _write_adapters(adapters, config, folder / ADAPTER_FOLDER)
    if with_llm:
        source = model_folder(config.sign_llm.language_model.path)
        shutil.copytree(source, folder / LANGUAGE_MODEL, ignore=_not_needed)
        _write_prompting(config, folder / LANGUAGE_MODEL)
    scores = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.glob("scores.*.json"))]
    card = model_card(config, found.words, datasets_of(run), scores, checkpoint, with_llm=with_llm)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_prompting(config: FinetuneConfig, folder: Path) -> None:
    """Let a copy of the language model say what the run recorded: its chat template and how it decodes.

    Other programs read both from the model's folder, where they may be another's than those of the run.
    """
    model = config.sign_llm.language_model
    tokenizer = load_tokenizer(str(folder))
    prompt = build_prompt(model, tokenizer, read_configuration(str(folder)).model_type)
    settings = library_settings(config.generation, tokenizer, prompt.ends)
    if config.generation.temperature is not None:
        settings.update(do_sample=True, temperature=config.generation.temperature)
        settings.update(top_p=config.generation.top_p, top_k=config.generation.top_k)
    if config.generation.no_repeat_ngram:
        settings.no_repeat_ngram_size = config.generation.no_repeat_ngram
    settings.save_pretrained(folder)
    if prompt.template is not None and prompt.template.text != tokenizer.chat_template:
        about = folder / "tokenizer_config.json"
        if about.is_file():
            named = json.loads(about.read_text(encoding="utf-8"))
            named.pop("chat_template", None)
            about.write_text(json.dumps(named, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
        (folder / "chat_template.jinja").write_text(prompt.template.text, encoding="utf-8")


def _portable(config: FinetuneConfig) -> FinetuneConfig:
    """Return the configuration with the language model by its whole path, if it is a folder's."""
    model = config.sign_llm.language_model
    return config.with_llm(str(Path(model.path).absolute())) if Path(model.path).exists() else config


def _write_adapters(adapters: Mapping[str, Tensor], config: FinetuneConfig, folder: Path) -> None:
    """Write adapters as ``peft.PeftModel.from_pretrained`` reads them."""
    from safetensors.torch import save_file

    model = config.sign_llm.language_model
    learnt = model.lora or model.prompt_tuning
    assert learnt is not None
    base = read_configuration(model.path)
    settings = build_peft_config(learnt, base, tokenizer=model.path)
    if base.architectures:
        settings.auto_mapping = {BASE_CLASS: base.architectures[0], "parent_library": "transformers"}
    settings.base_model_name_or_path, settings.inference_mode = model.path, True
    settings.save_pretrained(str(folder))
    save_file(to_peft(adapters), folder / "adapter_model.safetensors")


def _not_needed(folder: str, names: list[str]) -> list[str]:
    """Leave out of a model's folder what is not read: weights of other kinds, hidden files."""
    return [
        name
        for name in names
        if name.startswith(".") or name.endswith((".bin", ".pth", ".pt", ".h5", ".msgpack"))
    ]
