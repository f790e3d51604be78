"""The composed configurations: what is checked at once, and that config.json brings back what was saved."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signllm import config as configuration
from signllm.command import get_job_options
from signllm.config import (
    ComposeConfig,
    FinetuneConfig,
    PretrainConfig,
    differences,
    load_config,
    merge_config_file,
    open_run,
    run_stage,
    save_config,
)
from signllm.data.loading.mixture import DatasetRecord
from signllm.data.loading.pipeline import DataConfig
from signllm.errors import UsageError
from signllm.models.sign_llm import LanguageModelConfig, LoraConfig, SignLLMConfig
from signllm.models.vq_sign.quantizer import QuantizerConfig
from signllm.models.vq_sign.vq_sign import VQSignConfig
from signllm.training.checkpoint import TrainingState, save_checkpoint
from signllm.training.engine import TrainingConfig
from signllm.validation import from_plain, to_plain, validated
from signllm.verbs.stages import PRETRAIN as PRETRAIN_VERB

TRAINING = TrainingConfig(steps=4, learning_rate=0.01, betas=(0.9, 0.95))
PRETRAIN = PretrainConfig(training=TRAINING, vq_sign=VQSignConfig(quantizer=QuantizerConfig(codes=7)))
FINETUNE = FinetuneConfig(
    training=TrainingConfig(epochs=3),
    frozen_epochs=2,
    sign_llm=SignLLMConfig(
        vq_sign=PRETRAIN.vq_sign, language_model=LanguageModelConfig(lora=LoraConfig(targets=("q", "v")))
    ),
)


@pytest.mark.parametrize("config", [PRETRAIN, ComposeConfig(batch_size=3), FINETUNE])
def test_config_json_brings_back_what_was_saved(config: Any, tmp_path: Path) -> None:
    save_config(tmp_path, config)
    assert load_config(tmp_path, type(config)) == config
    assert run_stage(tmp_path) == configuration.STAGES[type(config)]


def read_config_file(path: Path, base: Any) -> Any:
    return from_plain(type(base), merge_config_file(path, base), where=path)


def test_a_file_of_settings_replaces_those_of_the_recipe(tmp_path: Path) -> None:
    base = dataclasses.replace(PRETRAIN, training=TrainingConfig(steps=9, batch_size=2))
    assert read_config_file(save_config(tmp_path, PRETRAIN), base) == PRETRAIN
    file = tmp_path / "settings.toml"
    file.write_text(
        "[training]\nsteps = 5\nlearning_rate = 1\n[vq_sign.encoder]\nbackbone_config = {depths = [1]}\n"
    )
    config = read_config_file(file, base)
    assert config.vq_sign.encoder.backbone_config == {"depths": [1]}
    assert config.vq_sign.quantizer == PRETRAIN.vq_sign.quantizer
    assert config.training == dataclasses.replace(base.training, steps=5, learning_rate=1.0)


@pytest.mark.parametrize(
    ("name", "text", "fact"),
    [
        ("a.toml", "[training]\nstep = 5", "'steps'"),
        ("a.toml", "[training]\nsteps = 'five'", "'five'"),
        ("a.toml", "[training", "TOML"),
        ("a.toml", "[vq_sign.quantizer]\nrevive_dead_after = 5", "EMA"),
        ("a.json", "{", "JSON"),
        ("a.json", '{"stage": "compose", "config": {}}', "compose"),
        ("missing.toml", None, "No such file"),
    ],
)
def test_a_wrong_file_of_settings_is_refused(name: str, text: str | None, fact: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as raised:
        read_config_file(tmp_path / name, PRETRAIN)
    assert fact in f"{raised.value} {raised.value.remedy}"
    assert raised.value.where == tmp_path / name


def test_options_override_the_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[training]\nsteps = 5\nbatch_size = 4\n")
    options = ["demo", "--run", "r", "--data", "s", f"--config={file}", "--training.steps", "7"]
    config = get_job_options(PRETRAIN_VERB.prepare(options))["config"]
    assert (config.training.steps, config.training.batch_size) == (7, 4)


def test_config_json_is_readable_and_complete(tmp_path: Path) -> None:
    record = json.loads(save_config(tmp_path, PRETRAIN).read_text())
    assert record["stage"] == "pretrain"
    assert record["config"]["vq_sign"]["quantizer"]["codes"] == 7
    assert record["config"]["training"]["betas"] == [0.9, 0.95]
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


def test_a_run_of_another_stage_is_refused_by_name(tmp_path: Path) -> None:
    save_config(tmp_path, PRETRAIN)
    with pytest.raises(UsageError, match="run of pretrain, not of finetune"):
        load_config(tmp_path, FinetuneConfig)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 99}, "format 99"),
        ({"stage": "dream"}, "stage dream"),
        ({"config": {"trainin": {}}}, "no setting 'trainin'"),
        ({"config": {"training": {"steps": "four"}}}, "training.steps is 'four'"),
        ({"config": {"training": {"steps": 4, "learning_rate": -1.0}}}, "learning_rate"),
        ({"config": {}}, "incomplete"),
    ],
)
def test_an_edited_or_foreign_config_is_refused(
    change: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    path = save_config(tmp_path, PRETRAIN)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=expected):
        load_config(tmp_path, PretrainConfig)


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', '{"stage": "pretrain"}'])
def test_a_damaged_config_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(tmp_path, PretrainConfig)


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        load_config(tmp_path / "nowhere", PretrainConfig)


@pytest.mark.parametrize("phase", [".", "frozen"])
def test_a_run_continues_with_its_own_settings_only(phase: str, tmp_path: Path) -> None:
    open_run(tmp_path, PRETRAIN)
    save_checkpoint(tmp_path / phase, TrainingState(stage="pretrain", step=1), {}, {}, keep=1)
    open_run(tmp_path, PRETRAIN)
    other = dataclasses.replace(PRETRAIN, training=dataclasses.replace(TRAINING, learning_rate=0.5))
    with pytest.raises(UsageError, match=r"training\.learning_rate: 0\.01 -> 0\.5"):
        open_run(tmp_path, other)
    assert load_config(tmp_path, PretrainConfig) == PRETRAIN


def test_a_run_without_a_checkpoint_may_begin_again_but_stays_of_its_stage(tmp_path: Path) -> None:
    open_run(tmp_path, FINETUNE)
    other = dataclasses.replace(FINETUNE, frozen_epochs=1)
    open_run(tmp_path, other)
    assert load_config(tmp_path, FinetuneConfig) == other
    with pytest.raises(UsageError, match="run of finetune, not of pretrain"):
        open_run(tmp_path, PRETRAIN)


def test_a_run_may_be_carried_out_differently(tmp_path: Path) -> None:
    open_run(tmp_path, PRETRAIN)
    longer = dataclasses.replace(TRAINING, steps=9, deepspeed="zero3", save_every=1)
    open_run(tmp_path, dataclasses.replace(PRETRAIN, training=longer))
    assert load_config(tmp_path, PretrainConfig).training == longer


A = DatasetRecord(name="A", weight=2.0, samples=3, shards=1, sha256="a" * 64)
B = DatasetRecord(name="B", weight=1.0, samples=2, shards=1, sha256="b" * 64)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ((A,), "datasets: A, B -> A"),
        ((dataclasses.replace(A, weight=1.0), B), "weight of A: 2 -> 1"),
        ((B, A), "shards of A"),
        ((A, dataclasses.replace(B, samples=9, sha256="c" * 64)), "shards of B: 2 samples in 1 shards"),
    ],
)
def test_a_run_continues_with_its_own_data_only(
    now: tuple[DatasetRecord, ...], expected: str, tmp_path: Path
) -> None:
    open_run(tmp_path, PRETRAIN, (B,))
    open_run(tmp_path, PRETRAIN, (A, B))  # nothing was learnt yet
    save_checkpoint(tmp_path, TrainingState(stage="pretrain", step=1), {}, {}, keep=1)
    with pytest.raises(UsageError, match=expected):
        open_run(tmp_path, PRETRAIN, now)
    open_run(tmp_path, PRETRAIN, (dataclasses.replace(A, name="moved"), B))


def test_a_run_begun_before_its_data_was_recorded_goes_on_and_records_it(tmp_path: Path) -> None:
    open_run(tmp_path, PRETRAIN)
    save_checkpoint(tmp_path, TrainingState(stage="pretrain", step=1), {}, {}, keep=1)
    open_run(tmp_path, PRETRAIN, (A,))
    with pytest.raises(UsageError, match="other data"):
        open_run(tmp_path, PRETRAIN, (B,))


@pytest.mark.parametrize(
    ("before", "after", "goes_on"), [(300, 400, True), (None, 400, False), (300, None, False)]
)
def test_a_limit_of_frames_may_change_but_not_come_or_go(
    before: int | None, after: int | None, goes_on: bool, tmp_path: Path
) -> None:
    def limited(most: int | None) -> PretrainConfig:
        return dataclasses.replace(PRETRAIN, data=DataConfig(max_frames_per_batch=most))

    open_run(tmp_path, limited(before))
    save_checkpoint(tmp_path, TrainingState(stage="pretrain", step=1), {}, {}, keep=1)
    if goes_on:
        open_run(tmp_path, limited(after))
    else:
        with pytest.raises(UsageError, match=r"data\.max_frames_per_batch"):
            open_run(tmp_path, limited(after))


def test_what_may_change_are_settings_that_exist() -> None:
    model = dataclasses.replace(FINETUNE.sign_llm, vq_sign=PRETRAIN.vq_sign)
    for name in configuration.MAY_CHANGE:
        is_of_pretraining = name.startswith("vq_sign.")
        value: Any = PRETRAIN if is_of_pretraining else dataclasses.replace(FINETUNE, sign_llm=model)
        for part in name.split("."):
            value = getattr(value, part)


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    open_run(tmp_path / "run", PRETRAIN)
    assert not (tmp_path / "run").exists()


def test_differences_name_every_changed_setting_and_nothing_else() -> None:
    assert differences(PRETRAIN, PRETRAIN) == []
    other = dataclasses.replace(PRETRAIN, training=dataclasses.replace(TRAINING, steps=5, seed=1))
    assert differences(PRETRAIN, other) == ["training.steps: 4 -> 5", "training.seed: 0 -> 1"]


@pytest.mark.parametrize("frozen", [-1, 4])
def test_more_frozen_epochs_than_epochs_is_refused(frozen: int) -> None:
    with pytest.raises(UsageError, match="frozen_epochs"):
        FinetuneConfig(training=TrainingConfig(epochs=3), frozen_epochs=frozen)


def test_a_removed_setting_is_ignored_at_its_old_default_and_refused_otherwise(tmp_path: Path) -> None:
    path = save_config(tmp_path, FINETUNE)
    record = json.loads(path.read_text())
    assert "recompose_every" not in record["config"]
    for value in (0, 2):
        record["config"]["recompose_every"] = value
        path.write_text(json.dumps(record))
        if value == 0:
            assert load_config(tmp_path, FinetuneConfig) == FINETUNE
            continue
        with pytest.raises(UsageError, match=r"recompose_every is 2.*signllm 0\.1\.0"):
            load_config(tmp_path, FinetuneConfig)


@validated
class Circle:
    radius: float


@validated
class Square:
    side: float


@validated
class Drawing:
    shape: Circle | Square
    path: Path
    colour: Literal["red", "blue"] = "red"
    corners: tuple[tuple[int, ...], ...] = ()
    names: dict[str, int] | None = None
    scale: float = 1.0


@given(
    shape=st.builds(Circle, radius=st.floats(allow_nan=False)) | st.builds(Square, side=st.integers(-9, 9)),
    path=st.text("abc/", min_size=1).map(Path),
    colour=st.sampled_from(["red", "blue"]),
    corners=st.lists(st.lists(st.integers()).map(tuple)).map(tuple),
    names=st.none() | st.dictionaries(st.text(), st.integers()),
)
def test_any_configuration_survives_json(**settings: Any) -> None:
    drawing = Drawing(**settings)
    assert from_plain(Drawing, json.loads(json.dumps(to_plain(drawing))), where="test") == drawing


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"colour": "bleu"}, "did you mean 'blue'"),
        ({"shap": {}}, "did you mean 'shape'"),
        ({"shape": {"sides": 3}}, "shape"),
        ({"shape": 3}, "Circle or Square"),
        ({"corners": [["one"]]}, "not int"),
        ({"corners": [[True]]}, "not int"),
        ({"scale": "1"}, "not float"),
        ({"path": 3}, "not Path"),
        ({"names": {"a": "b"}}, "names"),
    ],
)
def test_a_wrong_name_or_type_names_the_setting(change: dict[str, Any], expected: str) -> None:
    record = to_plain(Drawing(shape=Circle(radius=1), path=Path("a"))) | change
    with pytest.raises(UsageError, match=expected):
        from_plain(Drawing, record, where="test")
