"""The entry point: ``signllm VERB ...`` runs a verb and turns any failure into one message and an exit code.

The exit code is 0 for done, 1 for failed, and 2 for bad usage or bad input. Nothing heavy is imported before
a verb needs it, so that ``signllm --help`` answers in a tenth of a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from signllm.distributed.local_ranks import describe_error, report_failure
from signllm.verbs import run


def main(arguments: Sequence[str] | None = None, work: Callable[[list[str]], None] | None = None) -> int:
    """Run a command line and return its exit code; every failure becomes one message.

    Args:
        arguments: the command line; None takes that of this process.
        work: function that runs the arguments; None runs the verb that they name.
    """
    try:
        (work or run)(list(sys.argv[1:] if arguments is None else arguments))
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return _fail(error, *describe_error(error))


def _fail(error: BaseException, message: str, code: int) -> int:
    """Report a failure to the process that started this rank, or print it, and return the exit code."""
    if not report_failure(error, message):
        print(f"signllm: {message}", file=sys.stderr)
    return code
