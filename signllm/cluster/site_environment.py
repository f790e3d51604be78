"""The environment of sbatch: the site's settings, without the variables of an outer job.

Users export ``SBATCH_ACCOUNT``, ``SBATCH_PARTITION`` or ``SLURM_CLUSTERS`` once in their shell, and sbatch
reads them. A launch from inside a job, for example an interactive one, also has that job's variables, which
would misplace the ranks of the new job. For sbatch a variable overrides a line of the file, so a variable
whose option the file contains is removed: the profile and its options take precedence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OF_A_JOB = tuple(
    "SLURMD_ SLURM_JOB_ SLURM_JOBID SLURM_STEP SLURM_NODE SLURM_NNODES SLURM_NTASKS SLURM_NPROCS SLURM_TASK "
    "SLURM_PROCID SLURM_LOCALID SLURM_GTIDS SLURM_ARRAY_ SLURM_HET_ SLURM_PACK_ SLURM_CPUS_ SLURM_MEM_PER_ "
    "SLURM_TRES SLURM_GPUS SLURM_SHARDS_ SLURM_SRUN_ SLURM_LAUNCH_ SLURM_SUBMIT_ SLURM_TOPOLOGY_ "
    "SLURM_CLUSTER_NAME SLURM_WORKING_CLUSTER SLURM_RESTART_COUNT SLURM_PRIO_PROCESS SLURM_RLIMIT_ "
    "SLURM_DIST SLURM_PTY_ SLURM_TIMELIMIT SUBMITIT_".split()
)
"""Prefixes of variables that describe one job or step ("output environment variables" in the manuals).

``SLURM_TIMELIMIT`` is not one of them in the manuals, but srun would use it as the time limit of the ranks.
"""
ALSO_OF_A_JOB = tuple(
    "SLURM_CPU_BIND SLURM_MEM_BIND SLURM_GPU_ SLURM_EXPORT_ENV SLURM_HINT SLURM_THREADS_PER_CORE "
    "SLURM_PROFILE SLURM_OVERCOMMIT SLURM_UMASK SLURM_MPI_TYPE SLURM_WORKING_DIR SLURM_UNBUFFEREDIO "
    "SLURM_CONTAINER SBATCH_CPU_BIND SBATCH_MEM_BIND PMI_ PMIX_ OMPI_ CUDA_VISIBLE_DEVICES "
    "ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES ZE_AFFINITY_MASK GPU_DEVICE_ORDINAL".split()
)
"""Prefixes of variables that users export too; they describe a job only inside a job."""
NEVER_OF_A_JOB = (
    "SLURM_STEP_KILLED_MSG_NODE_ID",
    "SLURM_SRUN_REDUCE_TASK_EXIT_MSG",
    "SUBMITIT_PREEMPT_SIGNAL",
)
OPTION_VARIABLES = {
    "array": ("SBATCH_ARRAY_INX",),
    "clusters": ("SBATCH_CLUSTERS", "SLURM_CLUSTERS"),
    "hint": ("SBATCH_HINT", "SLURM_HINT"),
    "requeue": ("SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"),
    "no-requeue": ("SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"),
    "time": ("SBATCH_TIMELIMIT",),
    "cpus-per-task": ("SBATCH_CPUS_PER_TASK", "SBATCH_CPUS_PER_GPU"),
    **dict.fromkeys(
        ("mem", "mem-per-cpu", "mem-per-gpu"),
        ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
    ),
    **dict.fromkeys(
        ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"),
        ("SBATCH_GPUS", "SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK", "SBATCH_GPUS_PER_SOCKET"),
    ),
}
"""Variables of sbatch's options that are not named ``SBATCH_OPTION``.

Options that exclude each other have all variables of their group.
"""


@dataclass(frozen=True)
class SiteEnvironment:
    """The environment of sbatch.

    Attributes:
        variables: all variables.
        settings: names of the site's settings among them, without ``SLURM_CONF``, which only names the site.
        overruled: names of settings that were removed because the file contains their options.
    """

    variables: Mapping[str, str]
    settings: tuple[str, ...]
    overruled: tuple[str, ...]

    def describe(self) -> list[str]:
        """Return lines for the user about the settings; none if the shell has none."""
        lines = []
        if self.settings:
            lines.append(f"environment: sbatch also reads {', '.join(self.settings)} of this shell")
        if self.overruled:
            lines.append(f"environment: the file's options replace {', '.join(self.overruled)} of this shell")
        return lines


def site_environment(sbatch_file: str, environment: Mapping[str, str] | None = None) -> SiteEnvironment:
    """Return the environment for the submission of ``sbatch_file``, given that of this process."""
    environment = os.environ if environment is None else environment
    dropped = OF_A_JOB + (ALSO_OF_A_JOB if "SLURM_JOB_ID" in environment else ())
    kept = {
        name: value
        for name, value in environment.items()
        if name in NEVER_OF_A_JOB or not (name.startswith(dropped) or name in RANK_VARIABLES)
    }
    options = {"array", *re.findall(r"^#SBATCH --([\w-]+)", sbatch_file, flags=re.MULTILINE)}
    replaced = {name for option in options for name in _variables_of(option)}
    overruled = tuple(sorted(replaced & kept.keys()))
    kept = {name: value for name, value in kept.items() if name not in replaced}
    settings = {name for name in kept if name.startswith(("SBATCH_", "SLURM_"))} - {"SLURM_CONF"}
    return SiteEnvironment(kept, tuple(sorted(settings)), overruled)


def _variables_of(option: str) -> tuple[str, ...]:
    return OPTION_VARIABLES.get(option, ("SBATCH_" + option.upper().replace("-", "_"),))


@contextmanager
def process_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Replace this process's environment inside the block, so that submitit's commands inherit it."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
