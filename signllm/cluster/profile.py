"""A profile: what one kind of job asks the scheduler for, read from ``slurm/NAME.toml`` or any TOML file.

A site writes its partition, account and modules into a profile once; every job then names the profile and
changes single fields on the command line (``--nodes 4``). Unknown fields are refused with the nearest right
one.
"""

from __future__ import annotations

import shlex
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from signllm.errors import UsageError
from signllm.plain import from_plain
from signllm.shipped import shipped_file


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Resources of a job and how it is told to end.

    Attributes:
        executor: ``slurm`` submits with sbatch; ``local`` starts the same tasks on this machine, without a
            scheduler.
        nodes: machines.
        tasks_per_node: ranks on each; one per GPU.
        gpus_per_node: GPUs on each machine; 0 for CPU.
        cpus_per_task: cores per rank: its threads and its loader's workers.
        mem_gb: memory per machine; None leaves it to the site.
        timeout_min: wall time; the job saves and is queued again when it is used up.
        signal_delay_s: seconds between the warning and the end: a checkpoint must fit in.
        array_parallelism: how many jobs of an array run at the same time; None is as many as fit.
        max_timeouts: how often a job may use up its wall time; high, because Slurm counts every preemption of
            a short job.
        partition: Slurm's partition; None takes the site's default, as the next three do.
        account: whom to charge.
        qos: quality of service.
        constraint: features of the node.
        setup: shell lines before the ranks start (``module load``, ``source``).
        environment: variables for every rank.
        additional: further sbatch options by their long names, e.g. ``{"reservation": "sign"}``.
    """

    executor: Literal["slurm", "local"] = "slurm"
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    mem_gb: float | None = None
    timeout_min: int = 60
    signal_delay_s: int = 120
    array_parallelism: int | None = None
    max_timeouts: int = 100
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    additional: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "cpus_per_task": 1, "timeout_min": 1}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise UsageError(
                    f"{name} is {getattr(self, name)}", where=_option(name), remedy=f"give {limit} or more"
                )
        if self.array_parallelism is not None and self.array_parallelism < 1:
            raise UsageError(
                f"array_parallelism is {self.array_parallelism}",
                where="--array-parallelism",
                remedy="give 1 or more, or leave it out: as many as fit",
            )
        if self.gpus_per_node and self.tasks_per_node > self.gpus_per_node:
            raise UsageError(
                f"{self.tasks_per_node} tasks share {self.gpus_per_node} GPUs on a node",
                where="--tasks-per-node",
                remedy="one task per GPU: give at most as many tasks as GPUs",
            )
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise UsageError(
                f"the job is warned {self.signal_delay_s} s before the end of {self.timeout_min} min",
                where="--signal-delay-s",
                remedy="give more wall time or a shorter delay",
            )
        if self.executor == "local" and self.nodes > 1:
            raise UsageError(
                f"{self.nodes} nodes on this one machine",
                where="--nodes",
                remedy="use a slurm profile, or --nodes 1",
            )

    def slurm_parameters(self, job_name: str) -> dict[str, Any]:
        """Return what submitit's Slurm executor calls these fields; unset ones are left to the site."""
        asked = {
            "job_name": job_name,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks_per_node,
            "gpus_per_node": self.gpus_per_node or None,
            "cpus_per_task": self.cpus_per_task,
            "mem": None if self.mem_gb is None else f"{self.mem_gb:g}GB",
            "time": self.timeout_min,
            "signal_delay_s": self.signal_delay_s,
            "array_parallelism": self.array_parallelism or 100_000,  # submitit's own default is 256
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "setup": [*self.exports(), *self.setup],
            "additional_parameters": {"requeue": True, **self.additional},
            "srun_args": ["--kill-on-bad-exit=1"],  # a rank that dies would leave the others waiting for it
        }
        return {name: value for name, value in asked.items() if value is not None}

    def one_task(self) -> Profile:
        """Return what a verb without ranks asks for: one task on one machine, no GPU."""
        return replace(self, nodes=1, tasks_per_node=1, gpus_per_node=0)

    def exports(self) -> list[str]:
        """Return the shell lines that set ``environment``."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]


def _option(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def load_profile(name: str) -> Profile:
    """Read a shipped profile by name (``a100``, ``cpu``, ``h100``, ``local``) or any profile by its path.

    Raises:
        UsageError: no such profile, not TOML, or an unknown or wrong field.
    """
    path: Path = shipped_file("slurm", name, ".toml")
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"this profile is not TOML: {error}", where=path, remedy="see slurm/README.md"
        ) from None
    profile = from_plain(Profile, read, where=path)
    assert isinstance(profile, Profile)
    return profile
