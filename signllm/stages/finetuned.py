"""What a run of stage 3 holds: its words, its encoder, or all of SignLLM, as one checkpoint left them.

Word offsets mean nothing without the words they are of, so every checkpoint holds both. ``run/words.json`` is
the same as in the last one, for whoever reads the run, and serves checkpoints of before they held words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from signllm.config import FinetuneConfig, load_config
from signllm.cra.word_codebook import WordCodebook
from signllm.errors import UsageError
from signllm.models.sign_llm import SignLLM, build_sign_llm
from signllm.models.vq_sign import VQSign
from signllm.stages.encoding import vq_sign_of
from signllm.training.checkpoint import install_weights, load_weights, whole_checkpoint
from signllm.training.engine import (
    TrainingConfig,
    deepspeed_settings,
    import_deepspeed,
    start_distributed,
)
from signllm.training.zero3 import gather_when_called

STAGE = "finetune"


def words_of(checkpoint: Path, run: Path) -> WordCodebook:
    """Return the words that a checkpoint of a run was trained with.

    Raises:
        UsageError: they are missing or broken.
    """
    return WordCodebook.load(checkpoint if (checkpoint / "words.json").is_file() else run)


def load_encoder(config: FinetuneConfig, checkpoint: Path) -> VQSign:
    """Return VQ-Sign as a checkpoint left it, in evaluation mode, on the CPU.

    Raises:
        UsageError: the configuration names no encoder, or the weights do not fit.
    """
    if config.sign_llm.vq_sign is None:
        raise UsageError("the run names no encoder", where="sign_llm.vq_sign", remedy="fine-tune again")
    weights = load_weights(checkpoint, stage=STAGE)
    return vq_sign_of(config.sign_llm.vq_sign, weights, where=checkpoint, prefix="vq_sign.")


def load_sign_llm(run: Path, checkpoint: Path | None = None, *, zero_file: str | None = None) -> SignLLM:
    """Return the SignLLM of a fine-tuning run as a checkpoint left it, in evaluation mode.

    Args:
        run: its folder.
        checkpoint: by default the last whole one.
        zero_file: of ZeRO-3: the language model is partitioned over the ranks, each on its device, and all
            ranks then generate equally often. None: the model is whole, on the CPU.

    Raises:
        UsageError: not a run of stage 3, no whole checkpoint, no language model, weights that do not fit, a
            file of another ZeRO stage.
    """
    config = load_config(run, FinetuneConfig)
    checkpoint = checkpoint or whole_checkpoint(run)
    settings = None if zero_file is None else _zero3_settings(zero_file)
    model = build_sign_llm(config.sign_llm, words_of(checkpoint, run), deepspeed=settings)
    install_weights(model, load_weights(checkpoint, stage=STAGE), where=checkpoint)
    if settings is not None:
        ranks = start_distributed()
        for name, part in model.named_children():
            if name != "language_model":
                part.to(ranks.device)
        model.text_embeddings = model.text_embeddings.to(ranks.device)
        gather_when_called(model.language_model.model, settings)
    return model.eval()


def _zero3_settings(zero_file: str) -> dict[str, Any]:
    import_deepspeed()  # joined to the ranks before zero.Init asks how many there are
    world = start_distributed().world
    settings = deepspeed_settings(TrainingConfig(steps=1, batch_size=world, deepspeed=zero_file), world=world)
    if settings["zero_optimization"]["stage"] != 3:
        raise UsageError(
            f"{zero_file} does not partition the language model",
            where="--deepspeed",
            remedy="give zero3 or a file of stage 3, or nothing for a whole model on each rank",
        )
    return settings
