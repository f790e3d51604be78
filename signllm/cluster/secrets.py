"""Secrets are never written: not into an sbatch file, a record, or the pickle of a command line.

Colleagues can read a job's files for as long as the run exists. Slurm passes the environment of the
submitting shell to the job without writing it into one of our files, so a secret can be exported in that
shell. A variable counts as a secret if its name says so, as ``HF_TOKEN`` and ``WANDB_API_KEY`` do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence

from signllm.errors import UsageError

WORDS = frozenset(
    "TOKEN TOKENS SECRET SECRETS PASSWORD PASSWD PASSPHRASE KEY KEYS APIKEY CREDENTIAL CREDENTIALS".split()
)
SHORTEST = 8
"""Minimum length of a secret that is searched for: a shorter value occurs in many texts by chance."""
_LITERAL = re.compile(r"""\b([A-Za-z_]\w*)=(?!["']?\$)["']?[^\s"';]""")


def is_secret(name: str) -> bool:
    """Return whether a variable's value is a secret, judged by its name."""
    return not WORDS.isdisjoint(name.upper().split("_"))


def refuse_secrets(environment: Iterable[str], setup: Sequence[str]) -> None:
    """Refuse a profile that would write a secret into the job's file.

    Args:
        environment: names of the variables that the profile sets.
        setup: its shell lines; ``export HF_TOKEN=$(cat ~/.hf-token)`` contains no value and is accepted.

    Raises:
        UsageError: names the variable, never its value.
    """
    literal = [name for line in setup for name in _LITERAL.findall(line)]
    for name in [*environment, *literal]:
        if is_secret(name):
            raise UsageError(
                f"the profile gives a value to {name}, which looks like a secret",
                where="environment" if name in environment else "setup",
                remedy=f"export {name} in the shell that launches, because Slurm passes it on and no file "
                f"contains it; or read it in the job, in setup: 'export {name}=$(cat FILE)'",
            )


def refuse_secret_values(
    texts: Iterable[str], *, where: str, environment: Mapping[str, str] = os.environ
) -> None:
    """Refuse texts, about to be written, that contain a secret of this shell's environment.

    Raises:
        UsageError: names the variable, never its value.
    """
    secrets = {
        name: value for name, value in environment.items() if is_secret(name) and len(value) >= SHORTEST
    }
    for text in texts:
        for name, value in secrets.items():
            if value in text:
                raise UsageError(
                    f"this contains the value of {name}, which would be written into the job's files",
                    where=where,
                    remedy=f"remove the value, because the job has {name} in its environment",
                )
