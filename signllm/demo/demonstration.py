"""``signllm demo``: the whole path on the generated language, from nothing to scored translations.

Every stage is the verb that a user would type, on real files, through DeepSpeed on ``ranks`` ranks; this
module only puts them in order, runs what is independent side by side, and keeps the time. The ranks are
started once for all training stages (``signllm.demo_ranks``), and the maps of the frozen backbone are kept in
``features`` until the demo is complete (:mod:`signllm.models.vq_sign.feature_cache`). A stage that is
finished is marked in ``stages.json`` and not run again; an unfinished one continues, so the same command is
safe to run twice or after a kill. Scores are of the test split: unseen sentences by an unseen signer.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.atomic_files import atomic_write
from signllm.config import Recipe
from signllm.demo.language import function_words, sentences
from signllm.demo.stage_record import StageRecord
from signllm.demo.studio import TABLE, StudioConfig, film, split_sentences
from signllm.demo.text_model import TextModelConfig
from signllm.distributed.local_ranks import (
    end_with_parent,
    environment_variables,
    reuse_freed_memory,
    run_local_ranks,
    usable_cores,
)
from signllm.errors import UsageError
from signllm.models.vq_sign.feature_cache import VARIABLE
from signllm.progress import print_translations
from signllm.validation import to_plain

if TYPE_CHECKING:
    from signllm.config import FinetuneConfig

SPLIT = "test"
SENTENCES_SHOWN = 6
TEXTS = 6000  # sentences that the language model is trained on; the grammar has 32,886


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo films and how large its language model is.

    Attributes:
        studio: videos per split, level of the language, seed.
        text_model: the small LLaMA that is trained on text and frozen.
    """

    studio: StudioConfig = field(default_factory=StudioConfig)
    text_model: TextModelConfig = field(default_factory=TextModelConfig)


class Demo:
    """One demo in one folder.

    Args:
        out: everything is written below it.
        config: what is filmed and how the language model is made.
        stages: how the three stages are trained.
        ranks: processes that train together.

    Raises:
        UsageError: the ranks cannot share a batch.
    """

    def __init__(self, out: Path, config: DemoConfig, stages: Recipe, *, ranks: int) -> None:
        for training in (stages.pretrain.training, stages.finetune.training):
            if ranks < 1 or training.batch_size % ranks:
                raise UsageError(
                    f"{ranks} ranks cannot share the {training.batch_size} videos of a step",
                    where="--ranks",
                    remedy=f"a divisor of {training.batch_size}",
                )
        self.config, self.stages, self.ranks = config, stages, ranks
        self.out = out.resolve()  # recorded in the runs: the same folder by another name is the same demo
        self.shards, self.controls = self.out / "shards", _controls(self.out)
        self.record = StageRecord(self.out)

    def run(self) -> dict[str, Any]:
        """Run every stage that is not finished and return the summary, as written to ``summary.json``."""
        self._open()
        self.record.read()
        spawn, features = get_context("spawn"), self.out / "features"
        with (
            environment_variables({VARIABLE: str(features), **os.environ}),
            ProcessPoolExecutor(2, mp_context=spawn, initializer=_start_worker) as workers,
        ):
            self.record.run("film, shard, language model", lambda: self._make(workers))
            self._train_and_evaluate()
            self._show_sentences()
            self.record.run("controls", lambda: self._train_controls(workers))
        summary = self._summarize()
        shutil.rmtree(features, ignore_errors=True)
        return summary

    def _open(self) -> None:
        """Take the folder, or refuse one that was begun with other settings."""
        self.out.mkdir(parents=True, exist_ok=True)
        settings = {
            "demo": to_plain(self.config),
            **{name: to_plain(getattr(self.stages, name)) for name in STAGE_NAMES},
        }
        path = self.out / "demo.json"
        if not path.is_file():
            atomic_write(path, json.dumps(settings, indent=1).encode())
        elif json.loads(path.read_text(encoding="utf-8")) != settings:
            raise UsageError(
                "this folder holds a demo with other settings",
                where=path,
                remedy="give the same settings to continue it, or another --out",
            )

    def _film(self) -> None:
        from signllm.data.shards.writing import ShardConfig, shard

        cores = usable_cores()
        if not (self.out / "videos" / TABLE).is_file():
            film(self.out, self.config.studio, workers=max(1, cores - 1))  # one core has the language model
        shard("table", self.out / "videos" / TABLE, self.shards, ShardConfig(encode="copy", workers=cores))

    def _make(self, workers: ProcessPoolExecutor) -> None:
        """Train the language model on text while the videos are drawn: neither needs the other."""
        language_model = workers.submit(learn_language, self.out / "language-model", self.config)
        self._film()
        language_model.result()

    def _train_and_evaluate(self) -> None:
        """Run the stages that train and evaluate the model, on ranks that are started once."""
        signs, model = self.out / "vq-sign", self.out / "sign-llm"
        llm = ("--sign-llm.language-model.path", str(self.out / "language-model"))
        data = ("--data", str(self.shards))
        commands = {
            "pretrain": ["pretrain", "demo", "--run", str(signs), *data],
            "compose": ["compose", "demo", "--run", str(signs), *data],
            "finetune": ["finetune", "demo", "--run", str(model), *data, "--init", str(signs), *llm],
            "evaluate": ["evaluate", "--run", str(model), *data, "--split", SPLIT, "--shuffled"],
        }
        left = {name: command for name, command in commands.items() if name not in self.record.seconds}
        if left:
            arguments = [str(self.out), str(time.time()), json.dumps(left)]
            run_local_ranks(arguments, ranks=self.ranks, module="signllm.demo_ranks")
            self.record.read()

    def _show_sentences(self) -> None:
        """Print some of the final translations with their references."""
        path = self.out / "sign-llm" / f"hypotheses.{SPLIT}.jsonl"
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        chosen = records[:: max(1, len(records) // SENTENCES_SHOWN)][:SENTENCES_SHOWN]
        print_translations(
            f"{len(chosen)} of the {len(records)} translations of test videos, by the fully trained model:",
            [(record["id"], record["reference"], record["hypothesis"]) for record in chosen],
        )

    def _train_controls(self, workers: ProcessPoolExecutor) -> None:
        """Train and score both controls, one per core."""
        jobs = [
            workers.submit(control, self.out, self.stages) for control in (oracle_control, untrained_control)
        ]
        for job in jobs:
            job.result()

    def _summarize(self) -> dict[str, Any]:
        from signllm.demo.controls import content_word_accuracy
        from signllm.metrics.scores import METRICS
        from signllm.reporting import write_report

        systems = {
            "model": (self.out / "sign-llm", SPLIT),
            "oracle": (self.controls / "oracle", SPLIT),
            "shuffled": (self.out / "sign-llm", f"{SPLIT}.shuffled"),
            "untrained": (self.controls / "untrained", SPLIT),
        }
        scored = {}
        for name, (run, split) in systems.items():
            scores = json.loads((run / f"scores.{split}.json").read_text(encoding="utf-8"))
            kept = {key: scores[key] for key in METRICS}
            accuracy = content_word_accuracy(run / f"hypotheses.{split}.jsonl")
            scored[name] = kept | {"content_word_accuracy": round(accuracy, 4)}
        summary = {
            **scored.pop("model"),
            **scored,
            "seconds": round(sum(self.record.seconds.values()), 1),
            "stages": self.record.seconds,
            "data_wait": {run: _data_wait(self.out / run) for run in ("vq-sign", "sign-llm")},
            "split": SPLIT,
            "seed": self.config.studio.seed,
        }
        atomic_write(self.out / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
        write_report(self.out, shards=self.shards)
        return summary


def _start_worker() -> None:
    """Prepare a worker process: it ends with the demo and reuses the memory that it frees."""
    end_with_parent()
    reuse_freed_memory()


def _data_wait(run: Path) -> float:
    """Return the share of a run's training time that went into waiting for data."""
    from signllm.training.training_log import read_log

    lines = [line for line in read_log(run) if "data_wait" in line]
    waited_s = sum(line["data_wait"] * line["seconds"] for line in lines)
    return round(waited_s / sum(line["seconds"] for line in lines), 4)


STAGE_NAMES = tuple(item.name for item in dataclasses.fields(Recipe))


def learn_language(folder: Path, config: DemoConfig) -> None:
    """Train the demo's language model on one core, unless the folder is there: it comes into being whole."""
    import torch

    from signllm.demo.text_model import train_text_model

    if not folder.is_dir():
        torch.set_num_threads(1)
        if not torch.cuda.is_available():  # transformers imports DeepSpeed when it saves; it would warn
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        train_text_model(training_texts(config.studio), function_words(), folder, config.text_model)


def training_texts(config: StudioConfig) -> list[str]:
    """Return the texts that the language model learns from: sentences that are in neither dev nor test."""
    splits = split_sentences(config)
    held_out = {sentence.text for split in ("dev", "test") for sentence in splits[split]}
    written = (sentence.text for sentence in islice(sentences(config.seed + 1), TEXTS))
    return [text for text in written if text not in held_out]


def oracle_control(out: Path, stages: Recipe) -> None:
    """Train and score the model that is given the true signs."""
    from signllm.demo.controls import save_oracle, translate_truth

    save_oracle(stages.pretrain, stages.compose, _controls(out) / "oracle-signs", out)
    finetuned = _finetune_control(out, stages, "oracle", init=_controls(out) / "oracle-signs")
    translate_truth(_controls(out) / "oracle", out, out / "shards", SPLIT, finetuned)


def untrained_control(out: Path, stages: Recipe) -> None:
    """Train and score the model whose encoder never learned."""
    from signllm.data.loading.mixture import open_mixture
    from signllm.demo.controls import save_untrained
    from signllm.inference.evaluate import evaluate
    from signllm.stages.compose import compose

    run = _controls(out) / "untrained-signs"
    _one_core()
    dataset = open_mixture(out / "shards")
    save_untrained(stages.pretrain, run, dataset)
    compose(run, dataset, stages.compose)
    _finetune_control(out, stages, "untrained", init=run)
    evaluate(_controls(out) / "untrained", out / "shards", SPLIT)


def _finetune_control(out: Path, stages: Recipe, name: str, *, init: Path) -> FinetuneConfig:
    """Fine-tune a control on recorded characters for as many epochs as the model has in all.

    Its curves and sentences are not shown: it is validated as rarely as possible. One rank has nothing to
    partition: without ZeRO a step takes three quarters of the time and gives the same losses.
    """
    from signllm.data.loading.mixture import open_mixture
    from signllm.stages.finetune import finetune

    _one_core()
    model = stages.finetune.sign_llm
    language_model = dataclasses.replace(model.language_model, path=str(out / "language-model"))
    config = dataclasses.replace(
        stages.finetune,
        sign_llm=dataclasses.replace(model, language_model=language_model),
        frozen_epochs=stages.finetune.training.epochs or stages.finetune.frozen_epochs,
        training=dataclasses.replace(stages.finetune.training, deepspeed="zero0", validate_every=0, show=0),
    )
    finetune(config, _controls(out) / name, init, open_mixture(out / "shards"))
    return config


def _controls(out: Path) -> Path:
    """Return the folder of the controls' runs, apart from the model's own, which the report shows."""
    return out / "controls"


def _one_core() -> None:
    """Keep a control to one core: the other control runs at the same time."""
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
