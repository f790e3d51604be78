"""The door: ``signllm VERB ...`` runs a verb and turns whatever went wrong into one message and an exit code.

Exit 0 done, 1 failed, 2 bad usage or bad input. Nothing heavy is imported before a verb needs it, so
``signllm --help`` answers in a tenth of a second.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from signllm.errors import RunFailedError, UsageError
from signllm.training.local_ranks import FAILED, USAGE, report_failure
from signllm.verbs import run
from signllm.writing import NO_SPACE, REMEDY


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every failure becomes one message."""
    try:
        run(sys.argv[1:] if arguments is None else arguments)
        return 0
    except UsageError as error:
        return _fail(error, f"signllm: {error}", USAGE)
    except RunFailedError as error:
        return _fail(error, f"signllm: {error}", FAILED)
    except OSError as error:
        where = f"\n  where:  {error.filename}" if error.filename else ""
        return _fail(error, f"signllm: {error.strerror or error}{where}{_disk_remedy(error)}", FAILED)
    except KeyboardInterrupt as error:
        return _fail(error, "signllm: interrupted; the same command continues a run", FAILED)
    except Exception as error:
        return _fail(error, f"signllm: this is a fault of ours\n{traceback.format_exc()}", FAILED)


def _fail(error: BaseException, message: str, code: int) -> int:
    """Hand the message to whoever started this rank, or print it, and return the exit code."""
    if not report_failure(error, message.removeprefix("signllm: ")):
        print(message, file=sys.stderr)
    return code


def _disk_remedy(error: OSError) -> str:
    return f"\n  remedy: {REMEDY}" if error.errno in NO_SPACE else ""
