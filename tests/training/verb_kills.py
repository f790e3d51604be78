"""Kill a verb of the command line at random moments, give the same command again, compare what it leaves.

The data is the demo's, filmed in small; the verbs are ``python -m signllm VERB demo ... --ranks N``. A plan
says which signal comes how long after the start, and to whom: the launcher, a rank, or all ranks. One folder
is worked on by one start after the other until it is done; then every file must be that of the verb left
alone: the last checkpoint, words, translations to the last bit, logs and scores but for their clocks.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signllm.distributed.local_ranks import end_with_parent
from signllm.training.checkpoint import last_checkpoint, read_state
from signllm.training.training_log import read_log
from tests.training.kills import CLOCKS

CHECKOUT = Path(__file__).parents[2]
VERBS = ("pretrain", "compose", "finetune", "evaluate")
OF_THIS_START = ("startup.json", "tensorboard", "failures")
"""What in a run folder tells of the last start and not of the run."""
ENDS_WITHIN_S = 400.0
"""A start that is starved by others may take two minutes."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A signal to come: ``number`` after ``delay_s``, to ``whom``: "launcher", "one rank" or "all ranks"."""

    number: signal.Signals
    whom: str
    delay_s: float

    @property
    def kind(self) -> tuple[str, str]:
        """To whom, and which signal: what a table counts by."""
        return self.whom, self.number.name


@dataclass(frozen=True)
class Strike:
    """What a plan did.

    Attributes:
        plan: what was planned.
        before: steps saved before it, of all phases.
        after: the same, when the processes had ended.
        reached: steps in the logs.
        code: exit code of the command; 0: it was done.
        hung: something was still there after ``ENDS_WITHIN_S``; the log tells where.
    """

    plan: Plan
    before: int
    after: int
    reached: int
    code: int
    hung: bool

    @property
    def struck(self) -> bool:
        """Whether the signal kept the command from its end."""
        return self.code != 0

    @property
    def lost(self) -> bool:
        """Whether a saved state is gone."""
        return self.after < self.before


@dataclass(frozen=True)
class Bench:
    """A folder of shards, a language model and finished runs, made once by the verbs themselves."""

    folder: Path
    ranks: int
    deepspeed: str

    def command(self, verb: str, run: Path) -> list[str]:
        """Return the arguments of a verb on ``run``."""
        asked = [verb, "--run", str(run), "--data", str(self.folder / "shards"), "--ranks", str(self.ranks)]
        if verb == "evaluate":
            return [*asked, "--split", "train", "--batch-size", "2"]
        asked.insert(1, "demo")
        if verb == "compose":
            return [*asked, "--batch-size", "2"]
        asked += ["--training.deepspeed", self.deepspeed, "--training.batch-size", "4"]
        asked += ["--training.log-every", "1", "--training.save-every", "3", "--training.validate-every", "4"]
        if verb == "pretrain":
            return [*asked, "--training.epochs", "5"]
        asked += ["--training.epochs", "5", "--frozen-epochs", "2", "--init", str(self.folder / "pretrain")]
        return [*asked, "--sign-llm.language-model.path", str(self.folder / "language-model")]

    def prepare(self, verb: str) -> None:
        """Make what ``verb`` works on, where it is not there yet."""
        make_data(self.folder)
        for earlier, run in (("pretrain", "pretrain"), ("compose", "pretrain"), ("finetune", "finetune")):
            mark = self.folder / f"{earlier}.done"
            if earlier == verb:
                return
            if not mark.exists():
                self.must_end(earlier, self.folder / run)
                mark.touch()

    def place(self, verb: str) -> Path:
        """Return a run folder on which ``verb`` has done nothing yet; always by the same name."""
        run = self.folder / "killed"
        shutil.rmtree(run, ignore_errors=True)
        if verb == "compose":
            shutil.copytree(self.folder / "pretrain", run, ignore=shutil.ignore_patterns("words*", "charac*"))
        if verb == "evaluate":
            shutil.copytree(self.folder / "finetune", run, ignore=shutil.ignore_patterns("hypo*", "scores*"))
        return run

    def must_end(self, verb: str, run: Path) -> float:
        """Run a verb to its end and return its seconds."""
        begun = time.monotonic()
        code, hung = self.start(verb, run, None)
        assert (code, hung) == (0, False), (self.folder / "stderr.txt").read_text()[-3000:]
        return time.monotonic() - begun

    def left_alone(self, verb: str) -> tuple[dict[str, Any], float]:
        """Return what a verb leaves that nobody kills, and its seconds; run once, then read."""
        kept = self.folder / f"alone-{verb}-{self.deepspeed}-of-{self.ranks}"
        if not (kept / "seconds").exists():
            run = self.place(verb)
            seconds = self.must_end(verb, run)
            shutil.rmtree(kept, ignore_errors=True)
            run.rename(kept)
            (kept / "seconds").write_text(str(seconds))
        contents_now = contents(kept)
        return contents_now, float(contents_now.pop("seconds"))

    def start(self, verb: str, run: Path, plan: Plan | None) -> tuple[int, bool]:
        """Run a verb until it ends, with a signal on its way; return the exit code and whether it hung."""
        environment = {name: text for name, text in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        environment |= {"PYTHONPATH": str(CHECKOUT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONFAULTHANDLER": "1"}
        with (self.folder / "stderr.txt").open("w") as stderr:
            started = subprocess.Popen(
                [sys.executable, "-m", "signllm", *self.command(verb, run)],
                cwd=CHECKOUT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                preexec_fn=end_with_parent,
            )
            if plan is not None:
                _send(plan, started, self.ranks)
            return _end_of(started)


def make_data(folder: Path, *, train: int = 16) -> None:
    """Film and shard a few videos and save a language model that has hardly learned."""
    from signllm.data.shards.writing import ShardConfig, shard
    from signllm.demo.demonstration import training_texts
    from signllm.demo.language import function_words
    from signllm.demo.studio import TABLE, StudioConfig, film
    from signllm.demo.text_model import TextModelConfig, train_text_model

    if (folder / "data.done").exists():
        return
    studio = StudioConfig(train=train, dev=2, test=4)
    film(folder, studio, workers=1)
    config = ShardConfig(encode="copy", workers=1, show_progress=False)
    shard("table", folder / "videos" / TABLE, folder / "shards", config)
    small = TextModelConfig(steps=4, layers=1)
    train_text_model(training_texts(studio), function_words(), folder / "language-model", small)
    (folder / "data.done").touch()


def draw(rng: random.Random, number: signal.Signals, within_s: float) -> Plan:
    """Draw the moment and who gets the signal; USR2 is Slurm's, which sends it to ranks."""
    whom = rng.choice(("one rank", "all ranks") if number == signal.SIGUSR2 else ("launcher", "one rank"))
    return Plan(number, whom, rng.uniform(0.0, within_s))


def _send(plan: Plan, started: subprocess.Popen[bytes], ranks: int) -> None:
    """Wait for the moment and send the signal, if there is still something to send it to."""
    moment = time.monotonic() + plan.delay_s
    while started.poll() is None and time.monotonic() < moment:
        time.sleep(0.01)
    chosen = [started.pid]
    if ranks > 1 and plan.whom != "launcher":
        while started.poll() is None and len(chosen := _ranks_of(started.pid)) < ranks:
            time.sleep(0.01)
        if plan.whom == "one rank":
            chosen = chosen[int(plan.delay_s * 1000) % ranks :][:1]
    if started.poll() is None:
        for process in chosen:
            os.kill(process, plan.number)


def _ranks_of(launcher: int) -> list[int]:
    """Return the processes that a launcher started as ranks."""
    contents_now = []
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        try:
            if b"\0RANK=" in Path(f"/proc/{child}/environ").read_bytes():
                contents_now.append(int(child))
        except OSError:
            continue
    return contents_now


def _end_of(started: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """Wait for the end; what hangs is made to tell where each of its threads stands, and ended."""
    try:
        return started.wait(ENDS_WITHIN_S), False
    except subprocess.TimeoutExpired:
        for process in [*_ranks_of(started.pid), started.pid]:
            os.kill(process, signal.SIGABRT)
        return started.wait(), True


def saved_steps(run: Path) -> int:
    """Return the steps of the last whole checkpoints of a run's phases."""
    contents_now = [last_checkpoint(phase) for phase in (run / "frozen", run)]
    return sum(read_state(checkpoint).step for checkpoint in contents_now if checkpoint is not None)


def logged_steps(run: Path) -> int:
    """Return the steps in the logs of a run's phases."""
    return sum(max((line["step"] for line in read_log(phase)), default=0) for phase in (run / "frozen", run))


def contents(run: Path) -> dict[str, Any]:
    """Return what a run must be equal in, by file; of the checkpoints of each phase, the last."""
    last = [last_checkpoint(phase) for phase in (run / "frozen", run)]
    contents_now = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = path.relative_to(run)
        if any(part in OF_THIS_START for part in name.parts):
            continue
        if "checkpoints" in name.parts and path.parent not in last:
            continue
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            contents_now[str(name)] = [_without_clocks(json.loads(line)) for line in lines]
        elif path.suffix == ".safetensors":
            contents_now[str(name)] = _tensors(path.read_bytes())
        elif path.name != "COMPLETE":
            contents_now[str(name)] = path.read_bytes()
    return contents_now


def _tensors(content: bytes) -> tuple[Any, bytes]:
    """Return the header and the data of a safetensors file: it writes its notes in a drawn order."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        measured = {key for key in value if key in CLOCKS or key.endswith("_per_s")}
        return {key: _without_clocks(of) for key, of in value.items() if key not in measured}
    return value


def strike_until(
    bench: Bench,
    verb: str,
    kinds: Sequence[signal.Signals],
    rng: random.Random,
    *,
    within_s: float = math.inf,
) -> tuple[list[Strike], list[bool]]:
    """Kill a verb once for each of ``kinds``; return what that did, and whether each finished run is equal.

    A run that is done is compared and begun anew; the last is finished without a signal. No strike is begun
    after ``within_s``.
    """
    begun = time.monotonic()
    bench.prepare(verb)
    alone, alone_s = bench.left_alone(verb)
    run = bench.place(verb)
    strikes, same = [], []
    for number in kinds:
        if time.monotonic() - begun > within_s:
            break
        plan = draw(rng, number, alone_s)
        before = saved_steps(run)
        code, hung = bench.start(verb, run, plan)
        strikes.append(Strike(plan, before, saved_steps(run), logged_steps(run), code, hung))
        log.info("%s", strikes[-1])
        if hung:
            log.warning("%s", (bench.folder / "stderr.txt").read_text())
        if code == 0:
            same.append(_is_same(contents(run), alone))
            run = bench.place(verb)
    bench.must_end(verb, run)
    same.append(_is_same(contents(run), alone))
    return strikes, same


def _is_same(contents_now: dict[str, Any], alone: dict[str, Any]) -> bool:
    differing = sorted(
        name for name in contents_now.keys() | alone.keys() if contents_now.get(name) != alone.get(name)
    )
    for name in differing:
        log.warning("%s is not that of the run left alone", name)
    return not differing
