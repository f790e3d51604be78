"""Cells of an ablation study: one ablation with one seed, from its stages to its scores.

The folders of a cell are ``OUT/NAME/seed-S/{pretrain,words,finetune}``. A stage that several ablations share
is trained once, by the first cell that needs it, even if every cell is a job of its own: a folder is locked
while a job works in it, and the operating system releases the lock when the process ends. Every stage
resumes, so the same command continues after an interruption. A cell that has its scores is not changed any
more.
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

from signllm.atomic_files import atomic_write
from signllm.config import ComposeConfig, Recipe, differences
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.mixture import Mixture, open_mixture
from signllm.distributed.agreement import run_on_rank_zero
from signllm.distributed.preemption import stop_if_preempted
from signllm.distributed.ranks import Ranks, start_distributed
from signllm.errors import UsageError
from signllm.experiments.ablations import ABLATIONS, FULL, AblationInputs
from signllm.inference.evaluate import EvaluateConfig, evaluate
from signllm.stages.compose import compose
from signllm.stages.finetune import finetune
from signllm.stages.pretrain import pretrain
from signllm.validation import from_plain, to_plain

log = logging.getLogger(__name__)
RECORD = "ablation.json"
POLL_S = 2.0
"""Seconds between two attempts to lock a folder."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The settings that all ablations of a study have in common.

    Attributes:
        out: folder of the study.
        recipe: recipe of the full model.
        shards: folder or address of the shards.
        split: name of the split that is translated and scored.
        inputs: inputs that some ablations need in addition.
    """

    out: Path
    recipe: Recipe
    shards: str
    split: str
    inputs: AblationInputs

    def folder(self, name: str, seed: int) -> Path:
        """Return the folder of an ablation with a seed."""
        return self.out / name / f"seed-{seed}"

    def build_recipe(self, name: str, seed: int) -> Recipe:
        """Return the recipe of an ablation with a seed.

        Raises:
            UsageError: This recipe does not allow the ablation.
        """
        recipe = ABLATIONS[name](self.recipe, self.inputs)
        return replace(
            recipe,
            pretrain=replace(recipe.pretrain, training=replace(recipe.pretrain.training, seed=seed)),
            finetune=replace(recipe.finetune, training=replace(recipe.finetune.training, seed=seed)),
        )

    def is_done(self, name: str, seed: int) -> bool:
        """Return whether a cell has its scores.

        Raises:
            UsageError: The cell was begun with other settings.
        """
        self.check_recorded_settings(name, seed)
        return scores_path(self.out, name, seed, self.split).is_file()

    def check_recorded_settings(self, name: str, seed: int) -> None:
        """Check that a cell was begun with the same settings and data, if it was begun at all.

        Raises:
            UsageError: Settings differ; the message names each of them with both values.
        """
        path = self.folder(name, seed) / RECORD
        if not path.is_file():
            return
        begun = json.loads(path.read_text(encoding="utf-8"))
        before = from_plain(Recipe, begun["recipe"], where=path)
        changed = differences(before, self.build_recipe(name, seed))
        if begun["shards"] != self.shards:
            changed.append(f"--data: {begun['shards']} -> {self.shards}")
        if changed:
            raise UsageError(
                f"this ablation was begun with other settings: {'; '.join(changed)}",
                where=path,
                remedy="give the same settings to continue it, or choose another --out",
            )

    def record(self, name: str, seed: int) -> None:
        """Write the settings of a cell into its folder (called by one rank)."""
        record = {"recipe": to_plain(self.build_recipe(name, seed)), "shards": self.shards}
        atomic_write(self.folder(name, seed) / RECORD, json.dumps(record, indent=1) + "\n")


def scores_path(out: Path, name: str, seed: int, split: str) -> Path:
    """Return the path of the scores of a cell."""
    return out / name / f"seed-{seed}" / "finetune" / f"scores.{split}.json"


@dataclass(frozen=True, kw_only=True)
class CellFolders:
    """The folders of the stages of a cell; a shared stage is in the folder of the ablation that comes first.

    Attributes:
        pretrain: run folder of stage 1.
        words: folder of the word codebook.
        finetune: run folder of stage 3.
    """

    pretrain: Path
    words: Path
    finetune: Path


def cell_folders(study: Study, name: str, seed: int) -> CellFolders:
    """Return the folders of a cell.

    A stage that two ablations configure identically is trained once and reused: its folder is that of the
        first
    such ablation in the order of the table.
    """
    own = study.build_recipe(name, seed)
    pretrain_of = words_of = name
    for other in reversed(list(ABLATIONS)[: list(ABLATIONS).index(name)]):
        try:
            recipe = study.build_recipe(other, seed)
        except UsageError:
            continue  # the recipe does not allow this ablation
        if recipe.pretrain == own.pretrain:
            pretrain_of = other
            words_of = other if recipe.compose == own.compose else words_of
    return CellFolders(
        pretrain=study.folder(pretrain_of, seed) / "pretrain",
        words=study.folder(words_of, seed) / "words",
        finetune=study.folder(name, seed) / "finetune",
    )


def run_cell(study: Study, name: str, seed: int) -> None:
    """Run those stages of a cell that are not finished, and its evaluation (collective).

    Raises:
        UsageError: The cell was begun with other settings, or a stage rejects its settings.
        StoppedEarlyError: The job was asked to stop; the same command continues.
    """
    ranks = start_distributed(timeout_s=study.recipe.pretrain.training.timeout_s)
    if run_on_rank_zero(lambda: study.is_done(name, seed), ranks):
        return
    run_on_rank_zero(lambda: study.record(name, seed), ranks)
    recipe, cell = study.build_recipe(name, seed), cell_folders(study, name, seed)
    dataset = open_mixture(study.shards)
    with lock_folder(cell.pretrain, ranks):
        pretrain(recipe.pretrain, run=cell.pretrain, dataset=dataset).raise_if_preempted()
        gc.collect()
        words = _words_config(study, dataset, name, seed, recipe.compose, ranks)
        compose(cell.pretrain, dataset, words, out=cell.words)
    with lock_folder(cell.finetune, ranks):
        if run_on_rank_zero(lambda: study.is_done(name, seed), ranks):
            return
        outcome = finetune(
            recipe.finetune, run=cell.finetune, init=cell.pretrain, dataset=dataset, words_folder=cell.words
        )
        outcome.raise_if_preempted()
        gc.collect()  # while a ZeRO-3 engine exists, transformers would partition the next model as well
        evaluate(cell.finetune, study.shards, study.split, EvaluateConfig())


def _words_config(
    study: Study, dataset: Mixture, name: str, seed: int, config: ComposeConfig, ranks: Ranks
) -> ComposeConfig:
    """Return the settings of a cell's word composition.

    If they depend on the number of words of the full model, those words are composed first.
    """
    if ABLATIONS[name](study.recipe, replace(study.inputs, words=1)).compose == config:
        return config
    full = cell_folders(study, FULL, seed)
    compose(full.pretrain, dataset, study.build_recipe(FULL, seed).compose, out=full.words)
    words = run_on_rank_zero(lambda: len(WordCodebook.load(full.words).words), ranks)
    return ABLATIONS[name](study.recipe, replace(study.inputs, words=words)).compose


@contextmanager
def lock_folder(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Lock a folder for the ranks of this job; wait if another job has locked it (collective).

    Raises:
        StoppedEarlyError: The job was asked to stop while it waited.
    """
    handle = -1

    def try_lock() -> bool:
        nonlocal handle
        if handle < 0:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            log.warning(
                "%s: this file system has no locks; run ablations that share this folder one after the other",
                folder,
            )
        return True

    try:
        is_logged = False
        while not run_on_rank_zero(try_lock, ranks):
            if not is_logged and ranks.rank == 0:
                log.warning("waiting for another job that works in %s", folder)
            is_logged = True
            stop_if_preempted(ranks.device)
            time.sleep(POLL_S)
        yield
    finally:
        if handle >= 0:
            os.close(handle)
