"""What each rank of the demo runs: verbs of the command line, one after the other, in one process.

Each verb does exactly what ``signllm VERB ...`` does. Importing torch, transformers, peft and DeepSpeed takes
five seconds of computing on each rank: so it is spent once instead of once for each verb.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

from signllm.cli import main
from signllm.demo.stage_record import StageRecord
from signllm.distributed.local_ranks import end_process, is_first_rank, leave_process_group, prepare_rank
from signllm.verbs import run


def run_stages(arguments: list[str]) -> None:
    """Run stages of the demo that are not finished.

    Args:
        arguments: the folder of the demo, when the first stage began (as ``time.time()`` says it), and as
            JSON the command line of each stage by its name.
    """
    folder, begun, commands = Path(arguments[0]), float(arguments[1]), json.loads(arguments[2])
    if is_first_rank():
        sys.stdout = sys.stderr  # the standard output of the demo is its summary, which may be JSON
    record = StageRecord(folder, speaks=is_first_rank())
    record.read()
    for number, (name, command) in enumerate(commands.items()):
        record.run(name, functools.partial(run, command), begun=None if number else begun)


def run_process() -> None:
    """Run the stages of the command line and end this process with the exit code."""
    prepare_rank()
    code = main(sys.argv[1:], run_stages)
    if code == 0:
        leave_process_group()
    end_process(code)


if __name__ == "__main__":
    run_process()
