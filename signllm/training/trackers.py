"""Experiment trackers: Weights & Biases and MLflow receive the settings and the numbers of the log.

Rank 0 sends them from a thread, so a slow server does not delay training. A tracker that fails after it has
started is reported once, and training continues without it; ``log.jsonl`` has all numbers in any case. The
tracker's id of the run is stored in ``run/trackers.json``, and a resumed run continues it.

Servers, projects and keys are configured by the variables that the trackers' own programs read, such as
``WANDB_API_KEY``, ``WANDB_MODE`` and ``MLFLOW_TRACKING_URI``; none of them is written into the run folder. A
further tracker is a class like :class:`MlflowRun`, an entry of :data:`TRACKERS`, and a name in
:data:`~signllm.training.engine.TrackerName`.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Literal, Protocol

from signllm.atomic_files import atomic_write
from signllm.distributed.agreement import run_on_rank_zero
from signllm.distributed.ranks import Ranks
from signllm.errors import UsageError
from signllm.training.callbacks import Callback, Outcome, RunContext, Training
from signllm.training.engine import TrackerName

Status = Literal["finished", "preempted", "failed"]
PROJECT = "signllm"
"""Project or experiment, unless the tracker's own variable names another one."""
START_S = 90.0
"""Seconds that a tracker has to start; the other ranks wait meanwhile."""
FINISH_S = 20.0
"""Seconds that it has to send the last numbers; a preempted job has about a minute in all."""
LONGEST_PARAMETER = 6000
PARAMETERS_PER_CALL = 100
"""Limits of MLflow's server."""
SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN")
log = logging.getLogger(__name__)


class TrackedRun(Protocol):
    """A run in a tracker; all methods are called in one thread of rank 0."""

    def start(self, context: RunContext, settings: Mapping[str, Any], run_id: str | None) -> str:
        """Start a run, or continue the one with this id, and return its id."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step."""

    def finish(self, status: Status) -> None:
        """Send what is left, and close the run."""


class WandbRun:
    """A run in Weights & Biases; ``WANDB_MODE=offline`` writes it into ``run/wandb/`` for ``wandb sync``."""

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, context: RunContext, settings: Mapping[str, Any], run_id: str | None) -> str:
        """Start or continue the run.

        The command line is not sent, because an address of data may contain a password.
        """
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False):
            raise UsageError(
                "there is no API key of Weights & Biases",
                where="WANDB_API_KEY",
                remedy="run `wandb login`, or set WANDB_MODE=offline and run `wandb sync` later",
            )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=context.run,
            id=run_id,
            resume=None if run_id is None else "allow",
            name=os.environ.get("WANDB_NAME", _run_name(context)),
            job_type=context.stage,
            config=dict(settings),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                init_timeout=START_S,
                finish_timeout=FINISH_S,
            ),
        )
        self._run.define_metric("*", step_metric="step")  # unlike its own step, it may repeat after a kill
        return str(self._run.id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step."""
        self._run.log({"step": step, **values})

    def finish(self, status: Status) -> None:
        """Send what is left, and close the run."""
        if status == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "finished" else 1)


class MlflowRun:
    """A run in MLflow: on the server of ``MLFLOW_TRACKING_URI``, or else in files in ``run/mlruns/``."""

    def __init__(self) -> None:
        self._client: Any = None
        self._id = ""

    def start(self, context: RunContext, settings: Mapping[str, Any], run_id: str | None) -> str:
        """Start or continue the run."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = (context.run / "mlruns").resolve().as_uri()
        self._client = MlflowClient(address)
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            self._id = run_id
            return run_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run = self._client.create_run(
            experiment_id, run_name=_run_name(context), tags={"stage": context.stage}
        )
        self._id = str(run.info.run_id)
        parameters = [Param(name, text[:LONGEST_PARAMETER]) for name, text in _flatten(settings)]
        for first in range(0, len(parameters), PARAMETERS_PER_CALL):
            self._client.log_batch(self._id, params=parameters[first : first + PARAMETERS_PER_CALL])
        return self._id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step.

        In MLflow's files a metric cannot be named like a group of metrics: ``lr``, which repeats the rate of
        the first parameter group, is left out if there is ``lr/words``.
        """
        from mlflow.entities import Metric

        groups, now_ms = {name.partition("/")[0] for name in values if "/" in name}, int(time.time() * 1000)
        metrics = [Metric(name, value, now_ms, step) for name, value in values.items() if name not in groups]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, status: Status) -> None:
        """Close the run."""
        names = {"finished": "FINISHED", "preempted": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self._id, status=names[status])


TRACKERS: Mapping[TrackerName, tuple[str, Callable[[], TrackedRun]]] = {
    "wandb": ("wandb", WandbRun),
    "mlflow": ("mlflow", MlflowRun),
}
"""Name → the module that it needs, and its class."""


def require_packages(names: tuple[TrackerName, ...], ranks: Ranks) -> None:
    """Check that the packages of these trackers are installed (all ranks).

    Raises:
        UsageError: one is missing.
    """

    def check() -> None:
        for name in names:
            module = TRACKERS[name][0]
            try:
                package = importlib.import_module(module)
            except ImportError:
                package = None
            if getattr(package, "__version__", None) is None:  # a folder of this name is a module, too
                raise UsageError(
                    f"the tracker {name} needs the package {module}, which is not installed",
                    where="--training.trackers",
                    remedy="pip install 'signllm[tracking]', or leave the tracker out",
                )

    if names:
        run_on_rank_zero(check, ranks)


class Tracker(Callback):
    """Sends the settings and the numbers of the log to a tracker.

    Args:
        name: name of the tracker, for messages and in ``trackers.json``.
        tracked: the run in the tracker.
        settings: the configuration of the stage, as plain values.
    """

    def __init__(self, name: str, tracked: TrackedRun, settings: Mapping[str, Any]) -> None:
        self.name, self.tracked, self.settings = name, tracked, settings
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failed = False

    def on_start(self, training: Training) -> None:
        """Start or continue the run in the tracker.

        Raises:
            UsageError: the tracker cannot start a new run. If it cannot continue a run, training goes on
                without it, because a preempted job must not depend on a server.
        """
        run_on_rank_zero(lambda: self._start(training), training.context.ranks)

    def on_log(self, training: Training, line: Mapping[str, Any]) -> None:
        """Send the numbers of a line."""
        step = training.step
        values = {name: float(value) for name, value in line.items() if name != "step" and _is_finite(value)}
        if values:
            self._call(lambda: self.tracked.write(step, values))

    def on_end(self, training: Training, outcome: Outcome | None) -> None:
        """Close the run in the tracker; a server that does not answer in time is not waited for."""
        if self._thread is None:
            return
        status: Status = "failed" if outcome is None else "preempted" if outcome.preempted else "finished"
        self._call(lambda: self.tracked.finish(status))
        self._calls.put(None)
        self._thread.join(FINISH_S + 5)  # wandb itself gives up after FINISH_S
        if self._thread.is_alive():
            log.warning("%s did not receive the last numbers within %g s", self.name, FINISH_S)
        self._thread = None

    def _start(self, training: Training) -> None:
        context, path = training.context, training.context.run / "trackers.json"
        ids: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        run_id = ids.get(self.name)
        self._thread = threading.Thread(target=self._work, name=f"tracker {self.name}", daemon=True)
        self._thread.start()
        started = self._call(lambda: self.tracked.start(context, self.settings, run_id))
        try:
            ids[self.name] = started.result(START_S)
        except Exception as error:
            self._failed = True
            if isinstance(error, UsageError):
                raise
            has_answered = started.done()
            reason = _describe_without_secrets(error) if has_answered else f"no answer within {START_S:g} s"
            if run_id is None:
                raise UsageError(
                    f"the tracker {self.name} cannot be started: {reason}",
                    where="--training.trackers",
                    remedy="correct its variables (WANDB_MODE=offline needs no server), or leave it out",
                ) from None
            log.warning("%s cannot be continued, training goes on without it: %s", self.name, reason)
            return
        atomic_write(path, json.dumps(ids, indent=2) + "\n")

    def _call(self, work: Callable[[], Any]) -> Future[Any]:
        """Let the tracker's thread do some work, and return its future result."""
        result: Future[Any] = Future()
        self._calls.put((work, result))
        return result

    def _work(self) -> None:
        is_started = False
        while (call := self._calls.get()) is not None:
            work, result = call
            if self._failed:
                continue
            try:
                result.set_result(work())
                is_started = True
            except Exception as error:
                self._failed = True
                result.set_exception(error)
                if is_started:
                    reason = _describe_without_secrets(error)
                    log.warning("%s failed, training goes on without it: %s", self.name, reason)


def _describe_without_secrets(error: Exception) -> str:
    """Return an error as one line of text without keys, and without passwords of addresses."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return re.sub(r"//[^/@\s]+@", "//***@", text)


def _run_name(context: RunContext) -> str:
    """Return the last two parts of the run folder's path, because a phase is a folder of the same name."""
    return "/".join(context.run.resolve().parts[-2:])


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings with their dotted names, as text."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) and value else json.dumps(value)
