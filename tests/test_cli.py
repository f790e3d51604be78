"""The command line: fast help, one message per mistake, the exit code, and only rank 0 prints."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from signllm import cli, verbs
from signllm.data.annotations import FORMATS
from signllm.errors import RunFailedError, UsageError

CHECKOUT = Path(__file__).parents[1]


def signllm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "signllm", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(CHECKOUT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=CHECKOUT, timeout=300)


def _exit_code(arguments: list[str]) -> int:
    """Return how the program would end, whether tyro or we refuse."""
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text("heute regnet es im norden\nmorgen scheint die sonne im ganzen land\n")
    return path


def test_help_answers_in_half_a_second() -> None:
    """Measure processor time: on a machine that does nothing else it is the time on the clock."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert signllm("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_help_imports_no_torch() -> None:
    code = "import sys; from signllm.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True).returncode == 0


def test_help_names_every_verb_and_an_example_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    output = capsys.readouterr().out
    for name, verb in verbs.VERBS.items():
        assert f"  {name} " in output
        assert verb.example in output


def test_the_help_of_shard_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["shard", "--help"])
    words = set(re.findall(r"[\w-]+", capsys.readouterr().out))
    assert words >= FORMATS.keys(), "the docstring of `shard` in signllm/verbs/data.py lists them"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("signllm 0.")


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["pretran"], "did you mean `signllm pretrain`?"),
        (["shard", "tabel", "a", "b"], "did you mean 'table'?"),
        (["pretrain", "phoenix"], "did you mean 'phoenix2014t'?"),
        (["launch", "a10", "--dry-run", "--", "score"], "did you mean 'a100'?"),
        (["launch", "local", "--dry-run"], "for example: signllm launch"),
        (["launch", "local", "--dry-run", "--", "scor"], "did you mean `signllm score`?"),
        (["translate", "--run", "nowhere"], "name one video file"),
        (["shard", "info", "nowhere"], "one of phoenix2014t"),
        (["shards", "inof", "nowhere"], "did you mean 'info'?"),
        (["shards", "info", "nowhere"], "signllm shard"),
        (["report", "--run", "nowhere"], ""),
    ],
)
def test_a_mistake_is_reported_once_with_its_remedy(
    arguments: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert remedy in err
    assert err.count("remedy:") <= 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("--data.sise", "--data.size"), ("--training.epoch", "--training.epochs"), ("--rnu", "--run")],
)
def test_a_misspelt_option_names_the_right_one(
    option: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(["pretrain", "demo", "--run", "r", "--data", "d", option, "3"]) == 2
    assert nearest in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--training.learning-rate", "fast", "could not convert"),
        ("--training.learning-rate", "-1", "must be above 0"),
        ("--training.precision", "fp8", "fp32"),
        ("--frozen-epochs", "99", "training.epochs counts both phases"),
        ("--sign-llm.language-model.lora", '{"rnk": 8}', "did you mean 'rank'"),
        ("--sign-llm.language-model.prompt-tuning", '{"tokns": 8}', "did you mean 'tokens'"),
        ("--sign-llm.language-model.prompt-tuning", '{"init": "text"}', "prompt_tuning.init is text"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_loaded(
    option: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--run", "r", "--init", "i", "--data", "d"]
    assert _exit_code(["finetune", "demo", *paths, option, value]) == 2
    assert expected in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_json_is_json(sentences: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", "--hypotheses", str(sentences), "--references", str(sentences), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bleu4"] == pytest.approx(100)


def test_a_table_prints_nested_results_flat(capsys: pytest.CaptureFixture[str]) -> None:
    from signllm.command import print_result

    print_result({"splits": {"dev": {"hours": 1.25}}, "left_out": []}, json=False)
    assert capsys.readouterr().out == "splits.dev.hours  1.25\nleft_out          []\n"


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (UsageError("no such thing", where="there", remedy="look elsewhere"), 2, "remedy: look elsewhere"),
        (RunFailedError("rank 1 died"), 1, "rank 1 died"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/file"), 1, "remedy: free some space"),
        (KeyboardInterrupt(), 1, "interrupted"),
    ],
)
def test_what_goes_wrong_becomes_one_message_and_a_code(
    error: BaseException,
    code: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(arguments: object) -> None:
        raise error

    monkeypatch.setattr(cli, "run", fail)
    assert cli.main(["anything"]) == code
    err = capsys.readouterr().err
    assert expected in err
    assert "Traceback" not in err


def test_a_fault_of_ours_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "run", lambda arguments: 1 / 0)
    assert cli.main(["anything"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_only_the_first_rank_prints(sentences: Path) -> None:
    arguments = ["score", "--hypotheses", str(sentences), "--references", str(sentences)]
    assert "bleu4" in signllm(*arguments, RANK="0", WORLD_SIZE="2").stdout
    assert signllm(*arguments, RANK="1", WORLD_SIZE="2").stdout == ""


def test_the_translator_is_loaded_when_it_is_asked_for() -> None:
    code = "import sys, signllm; print('torch' in sys.modules, signllm.load.__module__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "signllm.inference.translate"]
