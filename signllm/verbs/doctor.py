"""``signllm doctor``: what this machine can do, before anything is started on it."""

import json as json_format
from itertools import groupby
from typing import TYPE_CHECKING, Any

from signllm.command import Job, Verb, prepare_job
from signllm.errors import RunFailedError

if TYPE_CHECKING:
    from signllm.doctor import Finding


def _doctor(arguments: list[str]) -> Job:
    def doctor(*, json: bool = False) -> None:
        """Check what this machine can do and what is missing.

        Args:
            json: print the result as JSON.
        """
        from signllm.doctor import examine

        findings = examine()
        wrong = [finding.name for finding in findings if finding.state == "wrong"]
        if json:
            print(json_format.dumps({"works": not wrong, **_record(findings)}, indent=2))
        else:
            _print(findings)
        if wrong:
            raise RunFailedError(f"missing or wrong on this machine: {', '.join(wrong)}")

    return prepare_job(doctor, arguments, verb="doctor", about=DOCTOR)


def _record(findings: "list[Finding]") -> dict[str, dict[str, Any]]:
    record: dict[str, dict[str, Any]] = {}
    for finding in findings:
        common = {"state": finding.state, "description": finding.description, "remedy": finding.remedy}
        record.setdefault(finding.group, {})[finding.name] = {**common, **finding.facts}
    return record


def _print(findings: "list[Finding]") -> None:
    order = list(dict.fromkeys(finding.group for finding in findings))
    for group, members in groupby(sorted(findings, key=lambda f: order.index(f.group)), lambda f: f.group):
        print(group, *(finding.line for finding in members), sep="\n")
    print("ok: works   --: absent, and not everybody needs it   !!: missing or wrong")


DOCTOR = Verb("show what this machine can do and what is missing", "signllm doctor", _doctor)
