"""One ablation with one seed, from its stages to its scores: ``OUT/NAME/seed-S/{pretrain,words,finetune}``.

What ablations share is made once, by whoever comes first, also where each is a job of its own: a shared
folder is locked while it is made, and the lock goes with its process. Each stage continues by itself, so the
same command goes on after a kill; a cell that has its scores is not touched again.
"""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from signllm.ablation.ablations import ABLATIONS, FULL, Given
from signllm.atomic_files import atomic_write
from signllm.config import ComposeConfig, FinetuneConfig, Recipe, differences
from signllm.cra.word_codebook import WordCodebook
from signllm.errors import UsageError
from signllm.evaluation.evaluate import EvaluateConfig, evaluate
from signllm.plain import from_plain, to_plain
from signllm.stages.agreement import once
from signllm.stages.compose import compose
from signllm.stages.finetune import finetune
from signllm.stages.pretrain import pretrain
from signllm.training.engine import Ranks, start_distributed
from signllm.training.local_ranks import StoppedEarlyError
from signllm.training.loop import Outcome
from signllm.training.preemption import leave_together

log = logging.getLogger(__name__)
RECORD = "ablation.json"
POLL_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Study:
    """What all ablations have in common.

    Attributes:
        out: folder of all of them.
        recipe: of the full model.
        shards: folder or address.
        split: that is translated and scored.
        given: what some ablations need.
    """

    out: Path
    recipe: Recipe
    shards: str
    split: str
    given: Given

    def folder(self, name: str, seed: int) -> Path:
        """Return the folder of an ablation with a seed."""
        return self.out / name / f"seed-{seed}"

    def recipe_of(self, name: str, seed: int) -> Recipe:
        """Return the recipe of an ablation with a seed.

        Raises:
            UsageError: the ablation cannot be made of this recipe.
        """
        recipe = ABLATIONS[name](self.recipe, self.given)
        return replace(
            recipe,
            pretrain=replace(recipe.pretrain, training=replace(recipe.pretrain.training, seed=seed)),
            finetune=replace(recipe.finetune, training=replace(recipe.finetune.training, seed=seed)),
        )

    def is_done(self, name: str, seed: int) -> bool:
        """Whether a cell has its scores.

        Raises:
            UsageError: they are of other settings.
        """
        self.refuse_others(name, seed)
        return scores_file(self.out, name, seed, self.split).is_file()

    def refuse_others(self, name: str, seed: int) -> None:
        """Raise where a cell was begun with other settings or data.

        Raises:
            UsageError: names each with both values.
        """
        path = self.folder(name, seed) / RECORD
        if not path.is_file():
            return
        begun = json.loads(path.read_text(encoding="utf-8"))
        before = from_plain(Recipe, begun["recipe"], where=path)
        changed = differences(before, self.recipe_of(name, seed))
        if begun["shards"] != self.shards:
            changed.append(f"--data: {begun['shards']} -> {self.shards}")
        if changed:
            raise UsageError(
                f"this ablation was begun otherwise: {'; '.join(changed)}",
                where=path,
                remedy="give the same settings to continue it, or another --out",
            )

    def record(self, name: str, seed: int) -> None:
        """Write down what a cell is made with (one rank)."""
        record = {"recipe": to_plain(self.recipe_of(name, seed)), "shards": self.shards}
        atomic_write(self.folder(name, seed) / RECORD, json.dumps(record, indent=1) + "\n")


def scores_file(out: Path, name: str, seed: int, split: str) -> Path:
    """Return where the scores of a cell belong."""
    return out / name / f"seed-{seed}" / "finetune" / f"scores.{split}.json"


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where the stages of a cell lie: its own folder, or that of the ablation that it shares them with."""

    pretrain: Path
    words: Path
    finetune: Path


def folders(study: Study, name: str, seed: int) -> Folders:
    """Return the folders of a cell; a stage is shared with the first ablation that has the same up to it."""
    own = study.recipe_of(name, seed)
    pretrain_of = words_of = name
    for other in reversed(list(ABLATIONS)[: list(ABLATIONS).index(name)]):
        try:
            recipe = study.recipe_of(other, seed)
        except UsageError:
            continue  # not to be made of this recipe
        if recipe.pretrain == own.pretrain:
            pretrain_of = other
            words_of = other if recipe.compose == own.compose else words_of
    return Folders(
        pretrain=study.folder(pretrain_of, seed) / "pretrain",
        words=study.folder(words_of, seed) / "words",
        finetune=study.folder(name, seed) / "finetune",
    )


def run_cell(study: Study, name: str, seed: int) -> None:
    """Make what a cell lacks (all ranks).

    Raises:
        UsageError: it was begun otherwise, or a stage refuses its settings.
        StoppedEarlyError: asked to leave; the same command goes on.
    """
    ranks = start_distributed(timeout_s=study.recipe.pretrain.training.timeout_s)
    if once(lambda: study.is_done(name, seed), ranks):
        return
    once(lambda: study.record(name, seed), ranks)
    recipe, where = study.recipe_of(name, seed), folders(study, name, seed)
    with held(where.pretrain, ranks):
        _to_its_end(pretrain(recipe.pretrain, run=where.pretrain, shards=study.shards))
        gc.collect()
        words = _words_config(study, name, seed, recipe.compose, ranks)
        compose(where.pretrain, study.shards, words, out=where.words)
    with held(where.finetune, ranks):
        if once(lambda: study.is_done(name, seed), ranks):
            return
        _finetune(recipe.finetune, where, study.shards)
        gc.collect()  # under ZeRO-3 transformers would cut the next model too, while this one's engine lives
        evaluate(where.finetune, study.shards, study.split, EvaluateConfig())


def _finetune(config: FinetuneConfig, where: Folders, shards: str) -> None:
    _to_its_end(
        finetune(config, run=where.finetune, init=where.pretrain, shards=shards, words_folder=where.words)
    )


def _words_config(study: Study, name: str, seed: int, config: ComposeConfig, ranks: Ranks) -> ComposeConfig:
    """Return how an ablation's words are composed, where that depends on how many the full model has."""
    if ABLATIONS[name](study.recipe, replace(study.given, words=1)).compose == config:
        return config
    of_full = folders(study, FULL, seed)
    compose(of_full.pretrain, study.shards, study.recipe_of(FULL, seed).compose, out=of_full.words)
    words = once(lambda: len(WordCodebook.load(of_full.words).words), ranks)
    return ABLATIONS[name](study.recipe, replace(study.given, words=words)).compose


def _to_its_end(outcome: Outcome) -> None:
    if outcome.preempted:
        raise StoppedEarlyError(f"asked to stop: saved after step {outcome.step}; the same command continues")


@contextmanager
def held(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold a folder for the ranks of one job; wait for another that has it (all ranks).

    Raises:
        StoppedEarlyError: asked to leave while waiting.
    """
    handle = -1

    def take() -> bool:
        nonlocal handle
        if handle < 0:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            log.warning("%s: this file system has no locks; run ablations that share it in turn", folder)
        return True

    try:
        told = False
        while not once(take, ranks):
            if not told and ranks.rank == 0:
                log.warning("waiting for another job that works in %s", folder)
            told = True
            leave_together(ranks.device)
            time.sleep(POLL_S)
        yield
    finally:
        if handle >= 0:
            os.close(handle)
