"""Every verb that reads shards, through the real command line: from an address and from a mixture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from signllm import cli
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.mixture import make_absolute
from signllm.models.language_model.causal_model import CausalLanguageModel
from signllm.models.language_model.prompt import Prompt
from signllm.training.checkpoint import last_checkpoint, read_state
from signllm.training.training_log import read_log
from tests.data.http_server import Server, serving
from tests.models import parts
from tests.stages import path

pytestmark = pytest.mark.usefixtures("tiny")
Command = Callable[..., str]


@pytest.fixture
def done(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command line that must end with ``code``; return what it printed."""

    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        ended = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert ended == code, err
        return err if code else out

    return run


@pytest.fixture
def server(composed: Path) -> Iterator[Server]:
    with serving(composed) as server:
        yield server


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards ``A``, English, and ``B``, of the south; the two share no text."""
    folder = tmp_path_factory.mktemp("both")
    for name, language, texts, train in (
        ("A", "English", parts.TEXTS[:2], (41, 29, 37)),
        ("B", "south", parts.TEXTS[2:], (33, 45)),
    ):
        made = path.write_videos(folder / f"{name}-made", language, texts, {"train": train, "dev": (26, 31)})
        shutil.move(made, folder / name)
    return folder


def losses(run: Path) -> list[Any]:
    kept = ("step", "loss", "validate/loss")
    return [{name: line[name] for name in kept if name in line} for line in read_log(run)]


def hypotheses(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "hypotheses.dev.jsonl").read_text().splitlines()]


def test_the_whole_path_from_an_address_is_that_from_the_disk(
    server: Server, composed: Path, tmp_path: Path, done: Command
) -> None:
    address, disk = f"{server.address}/shards", composed / "shards"
    first = tmp_path / "pretrain"
    done("pretrain", "tiny", "--data", address, "--run", first)
    assert losses(first) == losses(composed / "pretrain")
    done("compose", "tiny", "--data", address, "--run", first)
    assert WordCodebook.load(first) == WordCodebook.load(composed / "pretrain")
    runs = [tmp_path / "http", tmp_path / "disk"]
    for run, data in zip(runs, (address, disk), strict=True):
        done("finetune", "tiny", "--data", data, "--init", first, "--run", run)
        done("evaluate", "--run", run, "--data", data, "--split", "dev")
        done("report", "--run", run, "--data", data)
    assert losses(runs[0]) == losses(runs[1])
    assert hypotheses(runs[0]) == hypotheses(runs[1])
    scores = [json.loads((run / "scores.dev.json").read_text()) for run in runs]
    assert [score["shards"] for score in scores] == [address, str(disk)]
    reports = [(run / "report.html").read_text() for run in runs]
    strips = [text.count("data:image/jpeg") for text in reports]
    assert strips[0] == strips[1] > 0


def test_looking_at_shards_at_an_address(
    server: Server, composed: Path, tmp_path: Path, done: Command
) -> None:
    address, disk = f"{server.address}/shards", composed / "shards"
    info = [json.loads(done("shards", "info", data, "--json")) for data in (address, disk)]
    assert info[0] | {"root": ""} == info[1] | {"root": ""}
    assert info[0]["root"] == address
    verified = [done("shards", "verify", data) for data in (address, disk)]
    assert verified[0] == verified[1]
    for name, data in (("http.png", address), ("disk.png", disk)):
        done("shards", "preview", data, tmp_path / name)
    assert (tmp_path / "http.png").read_bytes() == (tmp_path / "disk.png").read_bytes()
    for verb in (("shards", "verify"), ("evaluate", "--run", composed / "pretrain", "--data")):
        assert done(*verb, f"{server.address}/none", code=2).count("remedy:") == 1


def test_a_mixture_goes_the_whole_path_and_each_sample_is_prompted_in_its_own_language(
    both: Path, tmp_path: Path, done: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, set[tuple[str, str]]] = {"training": set(), "validation": set()}
    written: list[str] = []
    score, generate = CausalLanguageModel.forward, CausalLanguageModel.generate_candidates
    prompted: set[str] = set()

    def forward(self: CausalLanguageModel, words: Any, counts: Any, texts: Any, languages: Any) -> Any:
        asked["training" if words.requires_grad else "validation"] |= set(zip(texts, languages, strict=True))
        return score(self, words, counts, texts, languages)

    def write(self: CausalLanguageModel, words: Any, counts: Any, languages: Any, *rest: Any) -> Any:
        written.extend(languages)
        return generate(self, words, counts, languages, *rest)

    def tokens(self: Prompt, text: str) -> list[int]:
        prompted.update([text] if text.startswith("translate") else [])
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    for name, spy in (("forward", forward), ("generate_candidates", write)):
        monkeypatch.setattr(CausalLanguageModel, name, spy)
    monkeypatch.setattr(Prompt, "tokens", tokens)
    mixture, first, run = f"{both}/A:2,{both}/B:1", tmp_path / "pretrain", tmp_path / "run"
    done("pretrain", "tiny", "--data", mixture, "--run", first)
    done("compose", "tiny", "--data", mixture, "--run", first)
    done("finetune", "tiny", "--data", mixture, "--init", first, "--run", run)
    pairs = {(text, "English") for text in parts.TEXTS[:2]} | {(text, "south") for text in parts.TEXTS[2:]}
    assert asked == {"training": pairs, "validation": pairs}
    assert prompted == {"translate English", "translate south"}
    done("evaluate", "--run", run, "--data", mixture, "--split", "dev", "--batch-size", 2)
    assert written == ["English", "English", "south", "south"]
    assert [line["id"] for line in hypotheses(run)] == ["A/dev/0", "A/dev/1", "B/dev/0", "B/dev/1"]
    page = tmp_path / "elsewhere.html"
    done("report", "--run", run, "--data", mixture, "--out", page)
    assert "data:image/jpeg" in page.read_text()
    assert not (run / "report.html").exists()
    assert json.loads((run / "scores.dev.json").read_text())["shards"] == make_absolute(mixture)
    done("translate", "--run", run, both / "A-made" / "dev0")
    done("translate", "--run", run, both / "A-made" / "dev0", "--language", "south")
    assert written[4:] == ["English", "south"]

    moved = tmp_path / "C"
    shutil.copytree(both / "A", moved)  # names are part of the ids, so characters are read anew
    renamed = f"{moved}:2,{both}/B:1"
    words = WordCodebook.load(first)
    done("compose", "tiny", "--data", renamed, "--run", first)
    assert WordCodebook.load(first).words == words.words
    done("finetune", "tiny", "--data", renamed, "--init", first, "--run", run, "--training.epochs", 4)


def test_a_run_goes_on_only_on_the_data_that_it_began_with(both: Path, tmp_path: Path, done: Command) -> None:
    a, b, run = both / "A", both / "B", tmp_path / "run"
    begun = ("pretrain", "tiny", "--run", run, "--training.steps")
    done(*begun, 3, "--data", f"{a}:2,{b}:1")
    recorded = json.loads((run / "config.json").read_text())
    assert [(d["name"], d["weight"], d["samples"]) for d in recorded["datasets"]] == [
        ("A", 2, 3),
        ("B", 1, 2),
    ]
    for data, changed, expected in (
        (f"{a}:1,{b}:1", (), "weight of A: 2 -> 1"),
        (f"{a}", (), "datasets: A, B -> A"),
        (f"{b}:2,{a}:1", (), "shards of A: 3 samples in 1 shards"),
        (f"{a}:2,{b}:1", ("--data.window", 3), "data.window: 16 -> 3"),
        (f"{a}:2,{b}:1", ("--data.max-frames-per-batch", 400), "data.max_frames_per_batch: None -> 400"),
    ):
        message = done(*begun, 5, "--data", data, *changed, code=2)
        assert expected in message
        assert "another --run to begin anew" in message
    assert json.loads((run / "config.json").read_text()) == recorded
    shutil.copytree(both, tmp_path / "moved")
    (tmp_path / "moved" / "B").rename(tmp_path / "moved" / "C")
    with serving(tmp_path / "moved") as server:
        moved = f"{server.address}/A:2,{tmp_path}/moved/C:1"
        done(*begun, 5, "--data", moved, "--training.batch-size", 1)
    checkpoint = last_checkpoint(run)
    assert checkpoint is not None
    # 3 steps of 2 samples and 2 steps of one: an epoch is A's 3 samples twice, and B's 2
    assert read_state(checkpoint).order == {"seed": 0, "epoch": 1, "samples_consumed": 0}
