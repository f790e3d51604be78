"""Real videos through every verb: eleven real clips are memorised, and PHOENIX's own files are read.

Not a claim of quality (most of these clips have their sentence burnt in): that the stages fit together on
videos which nobody of this project made, of two sizes and frame rates, and that what is written comes from
the pixels.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

import signllm
from signllm import cli
from signllm.data.annotations import read_annotations
from signllm.data.loading.mixture import open_mixture
from signllm.data.shards.writing import ShardConfig, shard
from signllm.data.source_samples import SourceSample
from signllm.demo.language import function_words, sentences
from signllm.demo.text_model import TextModelConfig, train_text_model
from signllm.inference.evaluate import EvaluateConfig, evaluate
from signllm.models.vq_sign.feature_cache import VARIABLE
from signllm.recipes import Recipe, demo
from signllm.stages.compose import compose
from signllm.stages.finetune import finetune
from signllm.stages.pretrain import pretrain

REAL = Path(__file__).resolve().parents[2] / "shared" / "realdata"
TABLE = REAL / "clips.tsv"
PHOENIX = REAL / "PHOENIX-2014-T-release-v3" / "PHOENIX-2014-T"
SIZE = 64
SWAPPED = ("good_morning", "where_is_the_bathroom")
SCORED = EvaluateConfig(convention="phoenix2014t")

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real clips are not there: {REAL}")


def real_clips() -> tuple[SourceSample, ...]:
    return read_annotations("table", TABLE).samples


def write_language_model(folder: Path) -> None:
    """Train a small language model of the demo's kind on the sentences of the videos and of the demo."""
    clips = [clip.text for clip in real_clips()]
    demos = [sentence.text for sentence in islice(sentences(0), 300)]
    config = TextModelConfig(width=64, layers=2, heads=2, steps=300, batch_size=16)
    train_text_model([*clips * 60, *demos], function_words(), folder, config)


def recipe(language_model: Path) -> Recipe:
    """Return the recipe ``demo`` for larger frames, and for 11 videos instead of 800."""
    made = demo()
    data = replace(made.pretrain.data, size=SIZE)
    vq_sign = replace(
        made.pretrain.vq_sign,
        encoder=replace(made.pretrain.vq_sign.encoder, frame_size=SIZE),
        quantizer=replace(made.pretrain.vq_sign.quantizer, decay_warmup=10),
    )
    model = made.finetune.sign_llm
    model = replace(model, language_model=replace(model.language_model, path=str(language_model)))
    training = {"batch_size": 11, "tensorboard": False, "log_every": 1, "save_every": 1000}
    return Recipe(
        pretrain=replace(
            made.pretrain,
            vq_sign=vq_sign,
            data=data,
            training=replace(made.pretrain.training, **training, epochs=30),
        ),
        compose=replace(made.compose, data=data),
        finetune=replace(
            made.finetune,
            sign_llm=model,
            data=data,
            training=replace(made.finetune.training, **training, deepspeed="zero2", epochs=122),
            frozen_epochs=120,
        ),
    )


@pytest.fixture(scope="module")
def memorised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``shards``, ``language-model`` and the runs ``vq-sign`` and ``sign-llm``."""
    folder = tmp_path_factory.mktemp("real")
    write_language_model(folder / "language-model")
    stages = recipe(folder / "language-model")
    shard("table", TABLE, folder / "shards", ShardConfig(size=96))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder / "features"))  # the backbone is frozen, as the demo's
        pretrain(stages.pretrain, folder / "vq-sign", open_mixture(folder / "shards"))
        compose(folder / "vq-sign", open_mixture(folder / "shards"), stages.compose)
        finetune(stages.finetune, folder / "sign-llm", folder / "vq-sign", open_mixture(folder / "shards"))
    return folder


def translations(run: Path, split: str) -> dict[str, str]:
    lines = (run / f"hypotheses.{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["id"]: line["hypothesis"] for line in map(json.loads, lines)}


def test_the_characters_of_real_clips_do_not_collapse(memorised: Path) -> None:
    lines = [json.loads(line) for line in (memorised / "vq-sign" / "log.jsonl").read_text().splitlines()]
    perplexities = [line["perplexity"] for line in lines if "perplexity" in line]
    assert len(perplexities) == 30
    assert min(perplexities) > 30, perplexities


def test_real_clips_are_memorised(memorised: Path) -> None:
    scores = evaluate(memorised / "sign-llm", memorised / "shards", "train", SCORED)
    result = translations(memorised / "sign-llm", "train")
    assert result.keys() == {clip.id for clip in real_clips()}
    assert scores["bleu4"] >= 90, result


def test_swapping_two_videos_swaps_their_translations(memorised: Path, tmp_path: Path) -> None:
    """Ids and texts keep their rows; only the video files are exchanged."""
    first, second = SWAPPED
    table = TABLE.read_text(encoding="utf-8").replace("\tclips/", f"\t{REAL}/clips/")
    for old, new in ((first, "."), (second, first), (".", second)):
        table = table.replace(f"/clips/{old}.gif", f"/clips/{new}.gif")
    (tmp_path / "swapped.tsv").write_text(table, encoding="utf-8")
    shard("table", tmp_path / "swapped.tsv", tmp_path / "shards", ShardConfig(size=96))
    run = Path(shutil.copytree(memorised / "sign-llm", tmp_path / "run"))

    evaluate(run, memorised / "shards", "train", SCORED)
    before = translations(run, "train")
    swapped = evaluate(run, tmp_path / "shards", "train", SCORED)
    after = translations(run, swapped["split"])  # other data than the run's own: files of their own
    assert before[first] != before[second]
    assert after == before | {first: before[second], second: before[first]}


def test_translate_reads_the_original_files(memorised: Path) -> None:
    """The test translates the gif itself, not the re-encoded sample of the shard."""
    translator = signllm.load(memorised / "sign-llm")
    clips = {clip.id: clip for clip in real_clips()}
    right = [name for name, clip in clips.items() if translator.translate(clip.video).text == clip.text]
    assert len(right) >= 9, right


def test_phoenix_goes_through_every_verb(
    memorised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its videos have two frames, padded to 13, which gives one character each."""
    shards, signs, run = (str(tmp_path / name) for name in ("shards", "vq-sign", "sign-llm"))
    brief = ("--training.steps", "2", "--training.batch-size", "1", "--training.no-tensorboard")
    language_model = ("--sign-llm.language-model.path", str(memorised / "language-model"))
    frames = sorted((PHOENIX / "features/fullFrame-210x260px/test").iterdir())[0]
    for verb in (
        ("shard", "phoenix2014t", str(PHOENIX), shards),
        ("shards", "verify", shards),
        ("pretrain", "demo", "--run", signs, "--data", shards, *brief),
        ("compose", "demo", "--run", signs, "--data", shards),
        ("finetune", "demo", "--run", run, "--init", signs, "--data", shards, *brief, *language_model),
        ("evaluate", "--run", run, "--data", shards, "--split", "test", "--json"),
        ("translate", "--run", run, str(frames), "--json"),
    ):
        code = cli.main(verb)
        output = capsys.readouterr()
        assert code == 0, (verb[0], output.err)
    assert len(translations(Path(run), "test")) == 1
    translated = json.loads(output.out)
    assert len(translated["characters"]) == 1
