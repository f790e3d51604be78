"""The door: ``signllm VERB ...`` runs a verb and turns whatever went wrong into one message and an exit code.

Exit 0 done, 1 failed, 2 bad usage or bad input. Nothing heavy is imported before a verb needs it, so
``signllm --help`` answers in a tenth of a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from signllm.training.local_ranks import describe_error, report_failure
from signllm.verbs import run


def main(arguments: Sequence[str] | None = None, work: Callable[[list[str]], None] | None = None) -> int:
    """Run a command line and return its exit code; every failure becomes one message.

    Args:
        arguments: those of the command line; None takes the ones of this process.
        work: what is done with them; None runs the verb that they name.
    """
    try:
        (work or run)(list(sys.argv[1:] if arguments is None else arguments))
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return _fail(error, *describe_error(error))


def _fail(error: BaseException, message: str, code: int) -> int:
    """Hand the message to whoever started this rank, or print it, and return the exit code."""
    if not report_failure(error, message):
        print(f"signllm: {message}", file=sys.stderr)
    return code
