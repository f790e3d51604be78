"""The model card of an export, in the format of model hubs (https://huggingface.co/docs/hub/model-cards)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from signllm.config import FinetuneConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.mixture import DatasetRecord
from signllm.metrics.scores import METRICS
from signllm.models.language_model.language_model import LanguageModelConfig
from signllm.version import VERSION

TEMPLATE = """\
---
library_name: signllm
tags: [sign-language-translation, gloss-free]
base_model: {base}
---

# Sign language translation with SignLLM

This model translates sign language video into text ({language}). It was trained with `signllm` {version}
according to *LLMs are Good Sign Language Translators* (arXiv 2404.00925). A vector-quantized encoder turns
the video into discrete characters, optimal transport has composed them into words, and a frozen language
model, which is {where}, generates the sentence.

    from signllm import load
    print(load("THIS FOLDER").translate("video.mp4").text)

or `signllm translate --run "THIS FOLDER" video.mp4`.

## Scores

{scores}

## Components

- language model: `{base}`, {kind}; prompt {prompt}
- characters: {codes} codes; words: {words} of two or more characters
- checkpoint: {checkpoint}
- training data:
{datasets}
- settings: `config.json`

## Licences

The code is licensed under Apache-2.0. These weights were trained on the data above with the language model
above, so the terms of both apply to them. Read the terms of the dataset (many allow research only) and of the
language model before you distribute the weights.

## Limits

The model has been trained on the signers, the camera and the topics of its training data only. Its sentences
can be fluent and still wrong: do not rely on them where a mistake causes harm. Deaf people and their
interpreters should decide whether a use is appropriate.
"""


def render_model_card(
    config: FinetuneConfig,
    words: WordCodebook,
    datasets: Sequence[DatasetRecord],
    scores: Sequence[Mapping[str, Any]],
    checkpoint: str,
    *,
    with_llm: bool,
) -> str:
    """Return the model card as Markdown.

    Args:
        config: configuration of the exported run.
        words: its word codebook.
        datasets: datasets that it was trained on.
        scores: contents of the ``scores.SPLIT.json`` files of the run.
        checkpoint: name of the exported checkpoint.
        with_llm: whether the export contains the language model.
    """
    model = config.sign_llm.language_model
    base = Path(model.path).name if Path(model.path).is_absolute() else model.path
    return TEMPLATE.format(
        base=base,
        version=VERSION,
        language=config.generation.language or "the language that the prompt names",
        where="in `language-model/`" if with_llm else "not part of this folder",
        scores=_score_table(scores),
        kind=f"{model.dtype}"
        + (f", in {model.quantize}" if model.quantize != "none" else "")
        + _describe_adapters(model),
        prompt=_describe_prompt(model),
        codes=words.codes,
        words=len(words.words),
        checkpoint=checkpoint,
        datasets="\n".join(
            f"  - {data.name}: {data.samples} videos in {data.shards} shards, sha256 {data.sha256[:16]}"
            for data in datasets
        )
        or "  - not recorded",
    )


def _describe_prompt(model: LanguageModelConfig) -> str:
    """Return the prompt of the run for the card."""
    if model.prompt is not None:
        return f"`{model.prompt}`"
    return "of its model family" + (
        ", in the language of the text" if model.prompt_language == "target" else ""
    )


def _describe_adapters(model: LanguageModelConfig) -> str:
    """Return which adapters the language model has."""
    if model.lora is not None:
        return f", LoRA of rank {model.lora.rank} in `adapter/`"
    if model.prompt_tuning is not None:
        return f", a learnt prompt of {model.prompt_tuning.tokens} vectors in `adapter/`"
    return ", unchanged"


def _score_table(scores: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with a row for each scored split."""
    if not scores:
        return "None were computed. Run `signllm evaluate` to compute them."
    names = tuple(METRICS)
    lines = [
        "| split | checkpoint | " + " | ".join(names) + " | signature |",
        "|---" * (len(names) + 3) + "|",
    ]
    for record in scores:
        values = " | ".join(f"{record[name]:.2f}" if name in record else "" for name in names)
        signature = record.get("signature", "").replace(
            "|", r"\|"
        )  # a bare | would end the cell of the table
        lines.append(f"| {record['split']} | {record['checkpoint']} | {values} | `{signature}` |")
    return "\n".join(lines)
