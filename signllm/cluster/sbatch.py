"""The sbatch file and its submission: submitit's, adapted to what individual sites accept and print.

submitit writes files for one kind of site. Here single options can be removed from the file, the job's number
is found even if a site's own sbatch prints other text, and the cluster of a job is remembered.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor, SlurmJob
from submitit.core.utils import DelayedSubmission, FailedSubmissionError, JobPaths
from submitit.slurm.slurm import _make_sbatch_string

_OPTION = re.compile(r"#SBATCH --([\w-]+)")
_SUBMITTED = re.compile(r"^Submitted batch job (\d+)(?: on cluster (\S+))?\s*$", re.MULTILINE)
_PARSABLE = re.compile(r"^(\d+)(?:;(\S+))?\s*$", re.MULTILINE)


def sbatch_file(
    command: str, folder: Path, parameters: Mapping[str, Any], *, dropped: Collection[str] = ()
) -> str:
    """Return submitit's sbatch file without the options ``dropped``."""
    text = _make_sbatch_string(command=command, folder=folder, **parameters)
    lines = [(line, _OPTION.match(line)) for line in text.split("\n")]
    return "\n".join(line for line, option in lines if option is None or option[1] not in dropped)


def parse_job_id(printed: str) -> tuple[str, str | None]:
    """Return the number of a job, and its cluster if that is another one, from what sbatch printed.

    A site's wrapper may print more text before and after, and may mention other jobs.

    Raises:
        FailedSubmissionError: no line is the answer of sbatch.
    """
    answers = _SUBMITTED.findall(printed) or _PARSABLE.findall(printed)
    if not answers:
        raise FailedSubmissionError(f"sbatch named no job; it printed {printed.strip()!r}")
    number, cluster = answers[-1]
    return number, cluster or None


class SbatchExecutor(SlurmExecutor):
    """Submits one job, or one array, whose file is that of :func:`sbatch_file`.

    Attributes:
        cluster: cluster that accepted the last job, if sbatch named one.
    """

    def __init__(self, folder: Path, *, max_num_timeout: int, python: str, dropped: Collection[str]) -> None:
        super().__init__(folder, max_num_timeout=max_num_timeout, python=python)
        self.dropped = dropped
        self.cluster: str | None = None

    def file_text(self) -> str:
        """Return the sbatch file of one job."""
        return sbatch_file(self._submitit_command_str, self.folder, self.parameters, dropped=self.dropped)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return sbatch_file(command, self.folder, self.parameters, dropped=self.dropped)

    def _get_job_id_from_submission_command(self, string: bytes | str) -> str:  # type: ignore[override]
        number, self.cluster = parse_job_id(string.decode() if isinstance(string, bytes) else string)
        return number

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[Any]:
        """Submit one job or one array; submitit's own arrays would not remove the dropped options."""
        if len(delayed_submissions) == 1:
            return list(super()._internal_process_submissions(delayed_submissions))
        folder = JobPaths.get_first_id_independent_folder(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        pickles = [folder / f"{uuid.uuid4().hex}.pkl" for _ in delayed_submissions]
        for delayed, path in zip(delayed_submissions, pickles, strict=True):
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            delayed.dump(path)
        self.parameters["map_count"] = len(pickles)
        array = self._submit_command(self._submitit_command_str)
        jobs: list[Any] = [
            SlurmJob(folder=self.folder, job_id=f"{array.job_id}_{n}", tasks=list(range(array.num_tasks)))
            for n in range(len(pickles))
        ]
        for job, path in zip(jobs, pickles, strict=True):
            job.paths.move_temporary_file(path, "submitted_pickle")
        return jobs
