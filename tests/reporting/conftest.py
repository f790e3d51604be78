"""A small run folder and a demo folder with every file that a report reads, with invented contents."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from signllm.cra.word_codebook import WordCodebook, fingerprint
from tests.inference.conftest import run, shards, trained_folder

__all__ = ["run", "shards", "trained_folder"]

EVIL = "<script>alert('x')</script> & \"quotes\""
CODES = 64


def write_run(run: Path, stage: str, *, evil: str = EVIL) -> Path:
    """Write a finished run of a stage."""
    rng = random.Random(stage)
    run.mkdir(parents=True)
    config = {"stage": stage, "format": 1, "config": {"training": {"learning_rate": 1e-3, "note": evil}}}
    (run / "config.json").write_text(json.dumps(config))
    with (run / "log.jsonl").open("w") as log:
        for step in range(10, 3010, 10):
            log.write(json.dumps({"stage": stage, "step": step, **_logged(stage, step, rng)}) + "\n")
    return run


def _logged(stage: str, step: int, rng: random.Random) -> dict[str, float]:
    def noisy(value: float) -> float:
        return value * (1 + 0.08 * rng.gauss(0, 1))

    fall = math.exp(-step / 700)
    rate = 1e-3 * min(1, step / 200) * (0.5 + 0.5 * math.cos(step / 3000 * math.pi))
    common = {"lr": rate, "grad_norm": noisy(1 + 4 * fall), "seconds": noisy(0.1)}
    if stage == "pretrain":
        return common | {
            "loss": noisy(1.2 + 3 * fall), "l_cp": noisy(1.1 + 1.2 * fall), "l_q": noisy(0.1 + 1.8 * fall),
            "perplexity": noisy(CODES * 0.8 * (1 - fall) + 2), "cp_accuracy": 0.9 - 0.4 * fall,
        }  # fmt: skip
    held_out = (
        {"validate/l_sim": noisy(0.9 + 2 * fall), "validate/bleu4": 40 * (1 - fall)}
        if step % 300 == 0
        else {}
    )
    common |= {"lr/projector": rate, "lr/encoder": rate / 5}
    return common | held_out | {
        "loss": noisy(1 + 4 * fall), "l_sim": noisy(0.6 + 3 * fall), "l_mmd": noisy(0.02 + 0.5 * fall),
        "l_cp": noisy(1.2), "l_q": noisy(0.1), "covered": 0.62,
    }  # fmt: skip


def write_words(run: Path) -> WordCodebook:
    """Write a word codebook with words of two to four characters over ``CODES`` codes."""
    rng = random.Random(1)
    words = tuple({tuple(rng.sample(range(CODES), rng.choice((2, 2, 3, 4)))) for _ in range(90)})
    curve = tuple(
        {
            "size": size, "entropy": 2.5 * math.exp(-size / 120) + 1.5, "chosen": size == 96,
            "marginal_utility": None if size == 32 else 0.01 * math.exp(-(((size - 96) / 80) ** 2)),
        }
        for size in range(32, 545, 32)
    )  # fmt: skip
    codebook = WordCodebook(
        codes=CODES, words=words, frequencies=tuple([1] * (CODES + 1 + len(words))), alpha=2.0,
        codebook=fingerprint(torch.zeros(CODES, 4)), curve=curve,
    )  # fmt: skip
    codebook.save(run)
    return codebook


def write_translations(run: Path, words: WordCodebook, *, evil: str = EVIL, count: int = 30) -> None:
    """Write hypotheses whose characters consist of words, and scores of two splits."""
    rng = random.Random(2)
    vocabulary = "tomorrow heavy rain in the north and sunny spells along the coast with mild wind".split()
    with (run / "hypotheses.test.jsonl").open("w") as lines:
        for place in range(count):
            chosen = rng.choices(words.words, k=12)
            characters = [c for word in chosen for c in word for _ in range(rng.choice((1, 1, 2)))]
            reference = rng.choices(vocabulary, k=9)
            hypothesis = [rng.choice(vocabulary) if rng.random() < 0.3 else word for word in reference]
            record = {
                "id": f"test/{place:03d}", "hypothesis": " ".join(hypothesis),
                "reference": " ".join(reference), "characters": characters, "words": [],
            }  # fmt: skip
            if place == 0:
                record |= {"id": f"test/{evil}", "hypothesis": f"{record['hypothesis']} {evil}"}
            lines.write(json.dumps(record) + "\n")
    for split, factor in (("test", 1.0), ("test.shuffled", 0.2)):
        scores = {"bleu1": 68.2, "bleu2": 57.0, "bleu3": 49.4, "bleu4": 43.7, "rouge_l": 66.0, "chrf": 61.0}
        record = {k: v * factor for k, v in scores.items()} | {
            "samples": count,
            "signature": f"invented {evil}",
        }
        if split == "test":
            record["intervals"] = {"bleu4": [40.25, 47.75]}
            record["breakdowns"] = {
                "signer": [
                    {"group": f"A {evil}", "samples": 3, "wer": 31.25, "bleu4": 50.5},
                    {"group": "B", "samples": count - 3, "wer": 62.5, "bleu4": 20.5},
                ],
                "frequency": [
                    {"group": "0", "words": 7, "missed": 100.0},
                    {"group": "1 to 4", "words": 70, "missed": 12.5},
                ],
            }
        (run / f"scores.{split}.json").write_text(json.dumps(record))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of finetune with all files."""
    run = write_run(tmp_path / "finetune", "finetune")
    write_translations(run, write_words(run))
    return run


@pytest.fixture
def demo_folder(tmp_path: Path) -> Path:
    """A demo folder with two runs and a summary."""
    demo = tmp_path / "demo"
    write_words(write_run(demo / "pretrain", "pretrain"))
    run = write_run(demo / "finetune", "finetune")
    write_translations(run, write_words(run))
    summary = {
        "bleu1": 68.2, "bleu4": 43.7, "rouge_l": 66.0, "content_word_accuracy": 0.71,
        "oracle": {"bleu4": 91.3, "rouge_l": 95.0, "content_word_accuracy": 0.98},
        "shuffled": {"bleu4": 9.4, "rouge_l": 31.0, "content_word_accuracy": 0.12},
        "untrained": {"bleu4": 19.9, "rouge_l": 44.0, "content_word_accuracy": 0.3},
        "seconds": 512.0,
        "stages": {"data": 41.0, "text_model": 130.0, "pretrain": 180.0, "compose": 12.0, "finetune": 100.0},
    }  # fmt: skip
    (demo / "summary.json").write_text(json.dumps(summary))
    return demo
