"""No secret is written anywhere: not in an sbatch file, not in a record, not in the pickle of a command line.

A job's files lie in a folder that colleagues read, for as long as the run does. Slurm hands the environment
of the submitting shell to the job by itself, without a file of ours, so a secret need not be written: export
it there. A variable is taken for a secret by its name, as ``HF_TOKEN`` and ``WANDB_API_KEY`` are.
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
"""Characters of a secret worth looking for: a shorter value stands in any text by chance."""
_LITERAL = re.compile(r"""\b([A-Za-z_]\w*)=(?!["']?\$)["']?[^\s"';]""")


def is_secret(name: str) -> bool:
    """Say whether a variable's name says that its value is a secret."""
    return not WORDS.isdisjoint(name.upper().split("_"))


def refuse_secrets(environment: Iterable[str], setup: Sequence[str]) -> None:
    """Refuse a profile that would write a secret into the job's file.

    Args:
        environment: names of the variables that the profile sets.
        setup: its shell lines; ``export HF_TOKEN=$(cat ~/.hf-token)`` writes no value and is fine.

    Raises:
        UsageError: names the variable, never its value.
    """
    literal = [name for line in setup for name in _LITERAL.findall(line)]
    for name in [*environment, *literal]:
        if is_secret(name):
            raise UsageError(
                f"the profile gives a value to {name}, which looks like a secret",
                where="environment" if name in environment else "setup",
                remedy=f"export {name} in the shell that launches: Slurm hands it to the job and no file "
                f"holds it; or read it there, in setup: 'export {name}=$(cat FILE)'",
            )


def refuse_secret_values(
    texts: Iterable[str], *, where: str, environment: Mapping[str, str] = os.environ
) -> None:
    """Refuse texts, about to be written, that contain the value of a secret in this shell's environment.

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
                    f"this holds the value of {name}, and a job's files would keep it",
                    where=where,
                    remedy=f"leave the value out: the job finds {name} in its environment",
                )
