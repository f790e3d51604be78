"""A profile: the resources of one kind of job, read from ``slurm/NAME.toml`` or from any TOML file.

A site writes its partition, account and modules into a profile once. Every job then names the profile and
changes single fields on the command line (``--nodes 4``). An unknown field is refused with the most similar
valid one.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

from signllm.cluster.secrets import refuse_secrets
from signllm.errors import UsageError
from signllm.package_files import find_package_file
from signllm.validation import NonNegativeInt, PositiveFloat, PositiveInt, from_plain, validated

SET_BY_FIELDS = {
    **{name: f"--{name}" for name in ("nodes", "time", "partition", "account", "qos", "constraint")},
    "cpus-per-task": "--cpus-per-task",
    "ntasks-per-node": "--tasks-per-node",
    "gpus-per-node": "--gpus",
    "mem": "--mem-gb",
    "signal": "--signal-delay-s",
    "array": "--array",
    "job-name": "--name",
    "output": "--logs",
    "error": "--logs",
}
"""Long options of sbatch for which the profile has a field or the command line has an option."""
SWITCHES = frozenset(
    "contiguous exclusive get-user-env hold kill-on-invalid-dep no-kill no-requeue overcommit "
    "oversubscribe propagate quiet reboot requeue resv-ports spread-job stepmgr test-only use-min-nodes "
    "verbose wait".split()
)
"""Long options of sbatch that take no value."""


@validated
class Profile:
    """Resources of a job, and how it is warned before its end.

    Attributes:
        executor: ``slurm`` submits with sbatch; ``local`` starts the same tasks on this machine without a
            scheduler.
        name: name of the job; by default made of the verb and the run folder.
        nodes: number of machines.
        gpus: GPUs on each machine, with one rank per GPU; 0 for CPU.
        tasks_per_node: ranks on each machine without GPUs; by default one.
        cpus_per_task: cores per rank, for its threads and its loader's workers.
        mem_gb: memory per machine in GB; by default the site's.
        time: wall time in Slurm's format (minutes, HH:MM:SS or D-HH:MM:SS); when it is used up, the job saves
            and is requeued.
        signal_delay_s: seconds between the warning and the end, within which a checkpoint must be saved.
        array_parallelism: jobs of an array that run at the same time; by default as many as fit, or one at a
            time without a scheduler.
        max_timeouts: how often a job may use up its wall time; high, because Slurm counts every preemption of
            a short job.
        partition: Slurm's partition; by default the site's, as for the next three.
        account: account that is charged.
        qos: quality of service.
        constraint: required features of the node.
        setup: shell lines before the ranks start (``module load``, ``source``).
        environment: variables for every rank, NAME=VALUE on the command line; no secrets.
        additional: further sbatch options by their long names, NAME=VALUE on the command line. An empty value
            removes an option that the file would contain otherwise, and sets one that takes no value
            (exclusive).
    """

    executor: Literal["slurm", "local"] = "slurm"
    name: str | None = None
    nodes: PositiveInt = 1
    gpus: NonNegativeInt = 0
    tasks_per_node: PositiveInt | None = None
    cpus_per_task: PositiveInt = 1
    mem_gb: PositiveFloat | None = None
    time: int | str = 60
    signal_delay_s: NonNegativeInt = 120
    array_parallelism: PositiveInt | None = None
    max_timeouts: NonNegativeInt = 100
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    additional: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.signal_delay_s >= 60 * self.minutes:
            raise UsageError(
                f"the job would be warned {self.signal_delay_s} s before the end of its {self.minutes} min",
                where="signal_delay_s",
                remedy="give more wall time or a shorter delay",
            )
        if self.executor == "local" and self.nodes > 1:
            raise UsageError(
                f"the local executor cannot use {self.nodes} nodes",
                where="nodes",
                remedy="use a slurm profile, or --nodes 1",
            )
        for name, value in self.additional.items():
            option = SET_BY_FIELDS.get(name.replace("_", "-"))
            if option is not None and (value or option == "--array"):
                raise UsageError(
                    f"{name!r} is among the additional sbatch options", remedy=f"set it by {option} instead"
                )
        refuse_secrets(self.environment, self.setup)

    @property
    def minutes(self) -> int:
        """Wall time in minutes, rounded up as Slurm does."""
        return wall_minutes(self.time)

    @property
    def ranks_per_node(self) -> int:
        """Ranks on each machine: one per GPU; without GPUs ``tasks_per_node``, or one."""
        return self.gpus or self.tasks_per_node or 1

    @property
    def ranks(self) -> int:
        """Ranks of the job."""
        return self.nodes * self.ranks_per_node

    @property
    def dropped_options(self) -> frozenset[str]:
        """Options of sbatch that the file must not contain, although submitit or a field would write them."""
        empty = {name.replace("_", "-") for name, value in self.additional.items() if not value}
        if "no-requeue" in empty:
            return frozenset(empty - SWITCHES | {"requeue"})
        return frozenset(empty - SWITCHES | empty & {"requeue"})

    def slurm_parameters(self, job_name: str) -> dict[str, Any]:
        """Return these fields as parameters of submitit's Slurm executor; unset ones are left to the site."""
        dropped = self.dropped_options
        additional = {name: value or True for name, value in self.additional.items()}
        # If a rank dies, the others must not wait for it. From Slurm 22.05 on, srun does not take the
        # number of cores from sbatch, and where jobs start with an empty environment (SBATCH_EXPORT=NONE)
        # srun would start the ranks without what the script has set.
        srun_args = ["--kill-on-bad-exit=1", "--export=ALL"]
        if "cpus-per-task" not in dropped:
            srun_args.append(f"--cpus-per-task={self.cpus_per_task}")
        parameters = {
            "job_name": self.name or job_name,
            "nodes": self.nodes,
            "ntasks_per_node": self.ranks_per_node,
            "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus_per_task,
            "mem": None if self.mem_gb is None else f"{self.mem_gb:g}GB",
            "time": self.minutes,
            "signal_delay_s": self.signal_delay_s,
            "array_parallelism": self.array_parallelism or 100_000,  # submitit's own default is 256
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "setup": [*self.exports(), *self.setup],
            "additional_parameters": {
                name: value
                for name, value in ({"requeue": True} | additional).items()
                if name.replace("_", "-") not in dropped
            },
            "srun_args": srun_args,
        }
        # submitit would write a wckey of its own, which sites that check such keys refuse.
        return {name: value for name, value in parameters.items() if value is not None} | {"wckey": None}

    def one_task(self) -> Profile:
        """Return the resources of a verb without ranks: one task on one machine, no GPU."""
        return replace(self, nodes=1, tasks_per_node=1, gpus=0)

    def exports(self) -> list[str]:
        """Return the shell lines that set ``environment``."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]


def wall_minutes(time: int | str) -> int:
    """Return the minutes of a wall time in any of Slurm's formats, rounded up.

    The formats are ``M``, ``M:SS``, ``H:MM:SS``, ``D-H``, ``D-H:MM`` and ``D-H:MM:SS``.

    Raises:
        UsageError: the text has none of these formats, or is zero.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(time))
    minutes = 0
    if match:
        days, *parts = match.groups()
        first, second, third = (int(part or 0) for part in parts)
        if days is None and parts[2] is None:
            first, second, third = 0, first, second  # minutes and seconds
        seconds = ((int(days or 0) * 24 + first) * 60 + second) * 60 + third
        minutes = -(-seconds // 60)
    if minutes < 1:
        raise UsageError(
            f"time is {time!r}", where="time", remedy="give minutes, HH:MM:SS or D-HH:MM:SS; 1 or more"
        )
    return minutes


def load_profile(name: str) -> Profile:
    """Read a shipped profile by name (``a100``, ``cpu``, ``h100``, ``local``), or any profile by its path.

    Raises:
        UsageError: there is no such profile, it is not TOML, or a field is unknown or has a wrong value.
    """
    path: Path = find_package_file("slurm", name, ".toml")
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"this profile is not TOML: {error}", where=path, remedy="see slurm/README.md"
        ) from None
    return from_plain(Profile, read, where=path)
