"""One real demo in small on two ranks, killed three times on its way: what it leaves, and run again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from signllm import cli
from signllm.demo.studio import TABLE, read_truth
from signllm.errors import UsageError
from signllm.recipes import find_recipe
from signllm.training.checkpoint import last_checkpoint, read_state
from tests import warm
from tests.demo.small import SIZES, small_demo

CHECKOUT = Path(__file__).parents[2]
STAGES = ["film, shard, language model", "pretrain", "compose", "finetune", "evaluate", "controls"]
SCORES = {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "chrf", "content_word_accuracy"}
REWRITTEN = {"summary.json", "report.html"}
pytestmark = pytest.mark.timeout(900)


def start(out: Path, program: str = sys.executable) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [program, "-m", "tests.demo.small", str(out)],
        cwd=CHECKOUT,
        env={**environment, "DEMO_UNDER_TEST": str(out)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )


def processes_of(out: Path) -> list[str]:
    """Return the command lines of all processes that descend from :func:`start`, in whatever session."""
    mark, command_lines = f"DEMO_UNDER_TEST={out}\0".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                command_lines.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return command_lines


def kill_when(out: Path, reached: Callable[[], bool]) -> list[str]:
    """Run the demo until ``reached``, kill its process group, and return what is still alive after that."""
    demo = start(out)
    while not reached():
        assert demo.poll() is None, "the demo ended before it was to be killed"
        time.sleep(0.05)
    os.killpg(demo.pid, signal.SIGKILL)
    demo.wait()
    for _ in range(100):
        if not processes_of(out):
            break
        time.sleep(0.1)
    return processes_of(out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo that was killed while filming, while fine-tuning and during the controls, and then completed."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc to see what a killed demo leaves running")
    out = tmp_path_factory.mktemp("demo") / "out"
    left = kill_when(out, lambda: len(list(out.glob("videos/*.mp4"))) >= 2)
    assert not left
    assert not (out / "videos" / TABLE).exists()
    assert not kill_when(out, (out / "sign-llm" / "frozen" / "log.jsonl").exists)
    assert list(json.loads((out / "stages.json").read_text())) == STAGES[:3]
    assert not kill_when(out, (out / "controls" / "untrained-signs" / "config.json").exists)
    assert list(json.loads((out / "stages.json").read_text())) == STAGES[:5]
    assert not (out / "summary.json").exists()
    assert start(out, warm.python()).wait() == 0
    return out


def test_the_summary_has_the_scores_of_the_model_and_of_all_controls(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for scores in (summary, summary["oracle"], summary["shuffled"], summary["untrained"]):
        assert scores.keys() >= SCORES
        assert all(0 <= scores[name] <= 100 for name in SCORES)
    model = json.loads((finished / "sign-llm" / "scores.test.json").read_text())
    assert summary["bleu4"] == model["bleu4"]
    assert model["samples"] == SIZES["test"]
    assert list(summary["stages"]) == STAGES
    assert summary["seconds"] == pytest.approx(sum(summary["stages"].values()), abs=0.1)
    assert all(0 < share < 1 for share in summary["data_wait"].values())
    assert summary["split"] == "test"


def test_every_run_translated_every_test_video_once(finished: Path) -> None:
    asked = {truth["id"] for truth in read_truth(finished) if truth["split"] == "test"}
    for run in ("sign-llm", "controls/oracle", "controls/untrained"):
        lines = (finished / run / "hypotheses.test.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["id"] for line in lines) == sorted(asked)


def test_the_report_shows_the_references(finished: Path) -> None:
    """Words that the translation lacks are marked, so the text is looked for between the tags."""
    shown = " ".join(re.sub(r"<[^>]*>", " ", (finished / "report.html").read_text()).split())
    first = json.loads((finished / "sign-llm" / "hypotheses.test.jsonl").read_text().splitlines()[0])
    assert f"Reference {first['reference']}" in shown


def test_what_was_killed_trained_as_long_as_it_was_to(finished: Path) -> None:
    def steps(run: str) -> int:
        checkpoint = last_checkpoint(finished / run)
        assert checkpoint is not None
        return read_state(checkpoint).step

    recipe = find_recipe("demo")
    pretraining, finetuning = recipe.pretrain.training, recipe.finetune.training
    assert pretraining.epochs is not None
    assert finetuning.epochs is not None
    frozen, per_epoch = recipe.finetune.frozen_epochs, SIZES["train"] // finetuning.batch_size
    assert steps("vq-sign") == pretraining.epochs * SIZES["train"] // pretraining.batch_size
    assert (steps("sign-llm/frozen"), steps("sign-llm")) == (
        frozen * per_epoch,
        (finetuning.epochs - frozen) * per_epoch,
    )
    for control in ("oracle", "untrained"):
        assert steps(f"controls/{control}") == finetuning.epochs * per_epoch
        assert steps(f"controls/{control}-signs") == 0


def test_nothing_temporary_is_left(finished: Path) -> None:
    assert not [path for path in finished.rglob("*") if path.name.endswith((".part", ".partial"))]


def test_run_again_it_changes_nothing_but_the_report(finished: Path) -> None:
    def written() -> dict[str, int]:
        files = (path for path in finished.rglob("*") if path.is_file())
        return {str(path): path.stat().st_mtime_ns for path in files if path.name not in REWRITTEN}

    before, summary = written(), (finished / "summary.json").read_text()
    small_demo(finished).run()
    assert written() == before
    assert (finished / "summary.json").read_text() == summary


def test_the_same_folder_by_another_name_is_the_same_demo(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parent)
    assert small_demo(Path("out")).out == finished.resolve()


def test_other_settings_in_the_same_folder_are_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="other settings"):
        small_demo(finished, seed=1).run()
    assert cli.main(["demo", "--out", str(finished), "--seed", "3"]) == 2
    message = capsys.readouterr().err
    assert message.count("signllm:") == 1
    assert "another --out" in message


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--level", "nonsense"], "one of easy, hard"),
        (["--ranks", "3"], "a divisor of"),
        (["--ranks", "0"], "a divisor of"),
        (["--seed", "-1"], "0 or more"),
    ],
)
def test_a_wrong_option_is_one_message_before_anything_is_written(
    options: list[str], remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--out", str(tmp_path / "out"), *options]) == 2
    message = capsys.readouterr().err
    assert message.count("signllm:") == 1
    assert remedy in message
    assert not (tmp_path / "out").exists()
