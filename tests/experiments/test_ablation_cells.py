"""Small ablations, from their stages to the table: shared stages are trained once, and nothing twice."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from signllm.config import FinetuneConfig, Recipe, load_config
from signllm.cra.word_codebook import WordCodebook, fingerprint
from signllm.data.loading.characters import load_split_characters
from signllm.distributed.ranks import start_distributed
from signllm.errors import UsageError
from signllm.experiments import ablation_cells as cells
from signllm.experiments.ablation_cells import Study, cell_folders, lock_folder, run_cell
from signllm.experiments.ablation_files import NAME, format_markdown, format_table, write_table_files
from signllm.experiments.ablation_table import read_ablation_table
from signllm.experiments.ablations import AblationInputs
from signllm.experiments.encoded_split import load_or_encode_split
from signllm.experiments.similar_signs import load_word_vectors
from signllm.inference.export import export
from signllm.inference.translate import load
from signllm.stages import initial_run as composed_run
from signllm.stages.initial_run import load_encoder_and_words
from signllm.training.checkpoint import load_weights
from signllm.verbs import ablate as verb
from tests.models import parts
from tests.stages import path

NAMES = ("full", "no_vq", "fsq", "characters", "bpe", "no_pretraining")


@pytest.fixture(scope="module")
def study(composed: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    recipe = Recipe(
        pretrain=path.PRETRAIN, compose=path.COMPOSE, finetune=path.finetune_config(composed / "llm")
    )
    study = Study(
        out=tmp_path_factory.mktemp("ablations"),
        recipe=recipe,
        shards=str(composed / "shards"),
        split="dev",
        inputs=AblationInputs(),
    )
    for name in NAMES:
        run_cell(study, name, 0)
    return study


def file_times(study: Study) -> dict[str, int]:
    return {
        str(file.relative_to(study.out)): file.stat().st_mtime_ns
        for file in study.out.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def test_shared_stages_are_trained_once(study: Study) -> None:
    folders = {name: sorted(p.name for p in study.folder(name, 0).iterdir() if p.is_dir()) for name in NAMES}
    assert folders == {
        "full": ["finetune", "pretrain", "words"],
        "no_vq": ["finetune", "pretrain", "words"],
        "fsq": ["finetune", "pretrain", "words"],
        "characters": ["finetune", "words"],
        "bpe": ["finetune", "words"],
        "no_pretraining": ["finetune", "pretrain", "words"],
    }
    full, no_mmd = cell_folders(study, "full", 0), cell_folders(study, "no_mmd", 0)
    assert (no_mmd.pretrain, no_mmd.words) == (full.pretrain, full.words)
    assert cell_folders(study, "no_mmd", 1).pretrain == study.out / "full" / "seed-1" / "pretrain"


def test_without_vq_vectors_take_the_place_of_characters(study: Study) -> None:
    where = cell_folders(study, "no_vq", 0)
    recorded, _ = load_split_characters(where.pretrain, "train")
    assert len(recorded) == 5
    assert all(vectors.dtype == np.float32 and vectors.shape[1] == 8 for vectors in recorded.values())
    weights = load_weights(where.finetune)
    assert not any(name.startswith("word_vectors") for name in weights)
    before = load_weights(where.pretrain)["encoder.first.weight"]
    assert not torch.equal(before, weights["vq_sign.encoder.first.weight"])  # the text's gradient reaches it
    assert torch.equal(before, load_weights(where.finetune / "frozen")["vq_sign.encoder.first.weight"])
    logged = [json.loads(line) for line in (where.pretrain / "log.jsonl").read_text().splitlines()]
    assert all(
        line["l_vq" if "l_vq" in line else "loss"] == line["l_cp"] for line in logged if "l_cp" in line
    )


def test_without_vq_features_of_an_encoder_that_was_trained_further_are_rejected(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = cell_folders(study, "no_vq", 0)
    weights, _ = load_encoder_and_words(where.pretrain, where.words)
    monkeypatch.setattr(composed_run, "load_weights", lambda *_, **__: weights)
    load_encoder_and_words(where.pretrain, where.words)
    weights["encoder.second.weight"] += 1e-3
    with pytest.raises(UsageError, match="does not fit"):
        load_encoder_and_words(where.pretrain, where.words)


def test_without_vq_there_are_no_characters_to_inspect(study: Study) -> None:
    where = cell_folders(study, "no_vq", 0)
    for run in (where.pretrain, where.finetune):
        with pytest.raises(UsageError, match="trained without a codebook"):
            load_or_encode_split(run, study.shards, "dev")


def test_with_fsq_the_codebook_is_kept_while_the_encoder_is_frozen_and_is_then_trained(study: Study) -> None:
    where = cell_folders(study, "fsq", 0)
    characters, recorded = load_split_characters(where.pretrain, "train")
    assert max(int(video.max()) for video in characters.values()) < 8
    pretrained, words = load_encoder_and_words(where.pretrain, where.words)
    assert recorded == words.codebook == fingerprint(pretrained["quantizer.codebook"])
    frozen, joint = load_weights(where.finetune / "frozen"), load_weights(where.finetune)
    for name in ("codebook", "scalars.encode_weight", "scalars.decode_weight"):
        assert torch.equal(frozen[f"vq_sign.quantizer.{name}"], pretrained[f"quantizer.{name}"])
        assert not torch.equal(joint[f"vq_sign.quantizer.{name}"], pretrained[f"quantizer.{name}"])
    assert load_or_encode_split(where.finetune, study.shards, "dev").codebook_moved
    assert load_word_vectors(where.finetune, words).shape == (words.size, 8)


@pytest.mark.parametrize("name", ["no_vq", "fsq"])
def test_without_a_learned_codebook_a_run_is_exported_and_translates_as_it_was_evaluated(
    study: Study, tmp_path: Path, name: str
) -> None:
    run = cell_folders(study, name, 0).finetune
    export(run, tmp_path / "export")
    written = [json.loads(line) for line in (run / "hypotheses.dev.jsonl").read_text().splitlines()]
    for video, expected in zip(parts.frames_of(path.LENGTHS["dev"], seed=3), written, strict=True):
        translation = load(tmp_path / "export").translate(video)
        assert (translation.text, list(translation.words)) == (expected["hypothesis"], expected["words"])


def test_without_pretraining_the_encoder_starts_random_and_is_trained_in_stage_3(study: Study) -> None:
    where = cell_folders(study, "no_pretraining", 0)
    assert [p.name for p in (where.pretrain / "checkpoints").glob("step-*")] == ["step-00000000"]
    before, after = load_weights(where.pretrain), load_weights(where.finetune)
    assert not torch.equal(before["encoder.first.weight"], after["vq_sign.encoder.first.weight"])


def test_the_ablations_of_cra_have_other_words(study: Study) -> None:
    full, only, pairs = (
        WordCodebook.load(cell_folders(study, name, 0).words) for name in ("full", "characters", "bpe")
    )
    assert len(full.words) > 0
    assert only.words == ()
    assert len(pairs.words) == len(full.words)
    assert pairs.segmentation == "bpe"
    assert full.codebook == only.codebook == pairs.codebook


def test_seeds_are_seeds_of_the_training(study: Study) -> None:
    recipe = study.build_recipe("no_mmd", 7)
    assert (recipe.pretrain.training.seed, recipe.finetune.training.seed) == (7, 7)
    stored = load_config(cell_folders(study, "full", 0).finetune, FinetuneConfig)
    assert stored.training.seed == 0


def test_a_finished_cell_is_not_changed_and_an_unfinished_one_continues(study: Study) -> None:
    before = file_times(study)
    run_cell(study, "full", 0)
    assert file_times(study) == before
    scores = study.folder("full", 0) / "finetune" / "scores.dev.json"
    scores.unlink()
    run_cell(study, "full", 0)
    after = file_times(study)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert "full/seed-0/finetune/scores.dev.json" in changed
    assert not any("checkpoints" in name or "/words/" in name for name in changed), changed


def test_other_settings_and_other_data_are_refused(study: Study) -> None:
    training = replace(study.recipe.finetune.training, learning_rate=0.5)
    other = replace(
        study, recipe=replace(study.recipe, finetune=replace(study.recipe.finetune, training=training))
    )
    with pytest.raises(UsageError, match=r"finetune\.training\.learning_rate: 0\.001 -> 0\.5"):
        run_cell(other, "full", 0)
    with pytest.raises(UsageError, match="--data"):
        run_cell(replace(study, shards="elsewhere"), "full", 0)


def test_a_job_waits_for_a_folder_that_another_job_has_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "POLL_S", 0.01)
    other = (tmp_path / ".lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    order: list[str] = []

    def release() -> None:
        time.sleep(0.3)
        order.append("released")
        other.close()

    thread = threading.Thread(target=release)
    thread.start()
    with lock_folder(tmp_path, start_distributed()):
        order.append("taken")
        again = (tmp_path / ".lock").open("w")
        with pytest.raises(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    thread.join()
    assert order == ["released", "taken"]


def test_the_table_has_a_row_for_every_ablation_that_was_begun(study: Study, tmp_path: Path) -> None:
    study.folder("no_mmd", 0).mkdir(parents=True, exist_ok=True)
    table = read_ablation_table(study.out, "dev")
    assert [row.name for row in table.rows] == [
        "full",
        "no_vq",
        "fsq",
        "characters",
        "bpe",
        "no_mmd",
        "no_pretraining",
    ]
    scores = json.loads((study.folder("bpe", 0) / "finetune" / "scores.dev.json").read_text())
    assert table.rows[4].mean["rouge_l"] == scores["rouge_l"]
    assert "not scored yet" in format_table(table).splitlines()[6]
    page = write_table_files(table, tmp_path)
    assert "Without CRA: characters only" in page.read_text()
    assert {file.suffix for file in tmp_path.glob(f"{NAME}.*")} == {".html", ".md", ".json", ".png"}
    assert format_markdown(table).splitlines()[2].startswith("| Full model | 1 |")


def test_other_cells_run_after_one_has_failed(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(words: list[str], *, ranks: int) -> None:
        commands.append(words)
        if "lora" in words:
            raise UsageError("no such thing")

    monkeypatch.setattr(verb, "run_local_ranks", run)
    with pytest.raises(verb.RunFailedError, match=r"1 of 4 ablations failed.*lora, seed 3"):
        verb._run_apart(study, [("full", 0), ("lora", 3), ("no_mmd", 3), ("no_mmd", 4)], ["demo", "--x"], 2)
    assert [words[-3:] for words in commands] == [
        ["lora", "--seeds", "3"],
        ["no_mmd", "--seeds", "3"],
        ["no_mmd", "--seeds", "4"],
    ]
    assert "no such thing" in capsys.readouterr().err
