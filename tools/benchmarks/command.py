"""Compare time, memory and error of signllm.kernels with other libraries, and with a lower bound of the time.

The row of a library that is not installed states so: pip install -e '.[bench]'.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from benchmarks import machine, measure, operators, table
from benchmarks.contender import Case, Row
from signllm.kernels.implementation import choose

NOTES = """\
examples:
  tools/bench_kernels                                        all operators on this CPU, some minutes
  tools/bench_kernels --device cuda --json bench.json
  tools/bench_kernels --operator vq_assign --only product --rounds 30
  tools/bench_kernels --operator sinkhorn --case 64x64x64 --only log_sinkhorn --no-memory
  tools/bench_kernels --quick                                small shapes, seconds: does it run?

how it measures:
  time    contenders take turns, round after round, after a warm-up; best and median of the rounds. A run
          longer than 8 s (GPU: 3 s) is taken once, without warm-up. GPU: CUDA events, synchronised.
  memory  peak beyond the inputs. CPU: growth of the process's resident high-water mark (VmHWM) in one call,
          in a fresh process per case whose malloc gives memory back at once. GPU: max_memory_allocated.
  error   against float64: vq_assign: share of rows without their nearest code; mmd: relative, of the value
          or of the gradient; sinkhorn: both marginals of the returned plan, L1 over the mass, worst problem.
  equal   sinkhorn's rivals get the fewest iterations (or the laxest threshold) that reach our error; one that
          cannot within the time limit is shown at the limit with the error that it had there."""


def arguments() -> argparse.Namespace:
    """Return the validated options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=NOTES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--operator", choices=tuple(operators.OPERATORS), action="append", help="all by default"
    )
    parser.add_argument("--case", metavar="TEXT", default="", help="only cases whose name holds TEXT")
    parser.add_argument(
        "--only", metavar="TEXT", action="append", help="ours and contenders whose name holds TEXT"
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, for a test")
    parser.add_argument("--threads", type=int, help="torch's (and faiss's) threads; torch's default")
    parser.add_argument("--rounds", type=int, help="most timed runs of one contender")
    parser.add_argument(
        "--limit", type=float, metavar="SECONDS", help="longest run of a solver to reach our error"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure CPU memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; remedy: --device cpu")
    return args


def effort(args: argparse.Namespace) -> measure.Effort:
    """Return how long to measure, from the command line."""
    chosen = measure.QUICK if args.quick else measure.ON_GPU if args.device == "cuda" else measure.Effort()
    named = {"rounds": args.rounds, "limit_s": args.limit}
    return dataclasses.replace(
        chosen,
        memory=not args.no_memory,
        **{key: value for key, value in named.items() if value is not None},
    )


def main() -> None:
    """Measure case by case, print each as soon as it is done, then write the JSON."""
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, only = torch.device(args.device), args.only or [""]
    names = args.operator or list(operators.OPERATORS)
    selected: list[Case] = [
        case for name in names for case in operators.cases(name, device, args.quick) if args.case in case.name
    ]
    if not selected:
        sys.exit(f"no case holds {args.case!r}; remedy: leave --case out, and see the names in the table")
    facts = machine.facts(device)
    facts |= {"device": args.device, "quick": args.quick, "seed": args.seed}
    chosen = choose(device)
    facts["implementation"] = {"implementation": chosen.implementation, "why": chosen.reason}
    where = facts["machine"]["gpu"] or facts["machine"]["cpu"]
    print(
        f"{where}; {facts['threads']} threads; torch {facts['versions']['torch']}; commit {facts['commit']}"
    )
    print("ours: {implementation} ({why})".format(**facts["implementation"]), table.LEGEND, sep="\n")
    rows: list[Row] = []
    for case in selected:
        measured = measure.measure(
            case,
            device,
            args.seed,
            effort(args),
            lambda name: name == "ours" or any(text in name for text in only),
            args.quick,
        )
        table.show(measured)
        rows += measured
        if args.json:  # after every case: what was measured before an interruption is kept
            args.json.parent.mkdir(parents=True, exist_ok=True)
            record = {**facts, "rows": [dataclasses.asdict(row) for row in rows]}
            args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
