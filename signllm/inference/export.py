"""``signllm export``: the trained weights of a run as one self-contained folder with a model card.

    config.json                   settings of the run, and checksums of its training data
    model.safetensors             all trained weights: encoder, codebook, word vectors, projector
    words.json/.safetensors       word codebook
    adapter/                      adapters in the format of peft, if there are any
    language-model/               optional copy of the frozen language model; otherwise config.json names it
    README.md                     model card: data, scores with their signature, settings, licences, usage

No file is a pickle. :func:`signllm.load` and ``signllm translate`` read the folder like a run folder.
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
from signllm.inference.model_card import render_model_card
from signllm.models.language_model.adapters import BASE_CLASS, build_peft_config, is_adapter, to_peft
from signllm.models.language_model.builder import build_prompt
from signllm.models.language_model.generation import library_settings
from signllm.models.language_model.loading import load_tokenizer, read_configuration
from signllm.models.language_model.model_files import model_folder
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
    """Export a fine-tuned run; the folder appears only when it is complete.

    Args:
        run: run folder of stage 3.
        out: folder to create; it must not exist.
        best: export the checkpoint with the best validation value instead of the last one.
        with_llm: copy the frozen language model into the export.

    Returns:
        ``out``.

    Raises:
        UsageError: This is not a fine-tuned run, there is no such checkpoint or language model, ``out``
            exists, or the disk is full.
    """
    if out.exists():
        raise UsageError("this folder exists already", where=out, remedy="name a folder that does not exist")
    load_config(run, FinetuneConfig)  # raises an error that names the stage if it is another one
    checkpoint = best_checkpoint(run) if best else complete_checkpoint(run)
    trained = read_trained_model(run, checkpoint)
    unfinished = out.with_name(f".{out.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with report_full_disk(out):
            unfinished.mkdir(parents=True)
            _write_export(trained, run, checkpoint.name, unfinished, with_llm=with_llm)
            unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def _write_export(trained: TrainedModel, run: Path, checkpoint: str, folder: Path, *, with_llm: bool) -> None:
    from safetensors.torch import save_file

    config = _with_absolute_llm_path(trained.config)
    save_config(folder, config, datasets_of(run))
    trained.words.save(folder)
    adapters = {name: tensor for name, tensor in trained.weights.items() if is_adapter(name)}
    rest = {name: tensor for name, tensor in trained.weights.items() if name not in adapters}
    save_file(rest, folder / WEIGHTS)
    if adapters:
        _write_adapters(adapters, config, folder / ADAPTER_FOLDER)
    if with_llm:
        source = model_folder(config.sign_llm.language_model.path)
        shutil.copytree(source, folder / LANGUAGE_MODEL, ignore=_list_unneeded_files)
        _write_prompt_settings(config, folder / LANGUAGE_MODEL)
    scores = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.glob("scores.*.json"))]
    card = render_model_card(config, trained.words, datasets_of(run), scores, checkpoint, with_llm=with_llm)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_prompt_settings(config: FinetuneConfig, folder: Path) -> None:
    """Write the chat template and the decoding settings of the run into the copy of the language model.

    Other programs read both from the model's folder, and the original files may differ from what the run
    used.
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
        tokenizer_file = folder / "tokenizer_config.json"
        if tokenizer_file.is_file():
            tokenizer_config = json.loads(tokenizer_file.read_text(encoding="utf-8"))
            tokenizer_config.pop("chat_template", None)
            tokenizer_file.write_text(
                json.dumps(tokenizer_config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
        (folder / "chat_template.jinja").write_text(prompt.template.text, encoding="utf-8")


def _with_absolute_llm_path(config: FinetuneConfig) -> FinetuneConfig:
    """Return the configuration with the absolute path of the language model, if that is a folder."""
    model = config.sign_llm.language_model
    return config.with_llm(str(Path(model.path).absolute())) if Path(model.path).exists() else config


def _write_adapters(adapters: Mapping[str, Tensor], config: FinetuneConfig, folder: Path) -> None:
    """Write adapters in the format that ``peft.PeftModel.from_pretrained`` reads."""
    from safetensors.torch import save_file

    model = config.sign_llm.language_model
    adapter = model.lora or model.prompt_tuning
    assert adapter is not None
    base = read_configuration(model.path)
    settings = build_peft_config(adapter, base, tokenizer=model.path)
    if base.architectures:
        settings.auto_mapping = {BASE_CLASS: base.architectures[0], "parent_library": "transformers"}
    settings.base_model_name_or_path, settings.inference_mode = model.path, True
    settings.save_pretrained(str(folder))
    save_file(to_peft(adapters), folder / "adapter_model.safetensors")


def _list_unneeded_files(folder: str, names: list[str]) -> list[str]:
    """Return the files of a model folder that are not read: weights in other formats, and hidden files."""
    return [
        name
        for name in names
        if name.startswith(".") or name.endswith((".bin", ".pth", ".pt", ".h5", ".msgpack"))
    ]
