"""Traffic of an optimizer step, counted in a real run of a small SignLLM and predicted by the plan.

For each ZeRO file, gloo ranks train with the project's loop; every collective is seen as it reaches torch
(:mod:`benchmarks.traffic_rank`) and compared with :mod:`signllm.cluster.planning.zero_costs`. Bytes are of a
complete tensor (all-reduce) or of all ranks' pieces together (all-gather, reduce-scatter), per step; of W
such bytes a rank of R sends W (R-1)/R in a ring, for an all-reduce twice that. Left out of both: norms and
flags of a few bytes. The model's own collectives (codes, signs of all videos) are counted alone: they depend
on the videos, not on ZeRO. Exit code 1: some count differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.traffic_rank import VIDEOS, Order, write_language_model
from signllm.cluster.planning.zero_costs import (
    Collective,
    Weight,
    Zero,
    planned_model_states,
    read_zero,
    step_traffic,
)
from signllm.package_files import find_package_file
from signllm.training.engine import TrainingConfig, deepspeed_settings

TOOLS = Path(__file__).resolve().parents[1]
SCALARS_BYTES = 64
"""Collectives up to this size are norms and flags."""
TIMEOUT_S = 900


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: a ZeRO file, settings of ``zero_optimization`` that differ in it, and how a step is taken."""

    deepspeed: str
    changes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    precision: str = "fp32"
    accumulation: int = 1
    recompute: bool = False

    @property
    def name(self) -> str:
        """The description of the case for the table."""
        parts = [self.deepspeed, self.precision, f"{self.accumulation} forward"]
        parts += ["recomputed"] if self.recompute else []
        return ", ".join(
            [*parts, *(f"{key.removeprefix('stage3_')} {value}" for key, value in self.changes.items())]
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kind of operation in a step: how often, bytes counted, bytes predicted (None: not planned)."""

    kind: str
    operations: int
    counted: int
    predicted: int | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run: its rows, ZeRO's first, and a rank's bytes of model states, by `startup.json` and the plan."""

    rows: list[Row]
    model_states: dict[str, int]
    planned: dict[str, int]


CUT = {"stage3_param_persistence_threshold": 100}
LET_GO = {**CUT, "stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 2000}
CASES = (
    Case(deepspeed="zero0"),
    Case(deepspeed="zero1"),
    Case(deepspeed="zero2"),
    Case(deepspeed="zero3", changes=CUT),
    Case(deepspeed="zero3", changes=LET_GO),
)
"""By the shipped thresholds, no tensor of the small model would be partitioned or released."""


def main() -> int:
    """Count and predict case by case, print a table each, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2, help=f"a divisor of {VIDEOS}")
    parser.add_argument("--deepspeed", nargs="+", help="ZeRO files of these names only")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--accumulation", type=int, default=1, help="forward passes per step")
    parser.add_argument("--recompute", action="store_true", help="with activation checkpointing")
    args = parser.parse_args()
    if VIDEOS % args.ranks:
        parser.error(f"--ranks {args.ranks} does not divide {VIDEOS} videos")
    cases = [
        dataclasses.replace(
            case, precision=args.precision, accumulation=args.accumulation, recompute=args.recompute
        )
        for case in CASES
        if args.deepspeed is None or case.deepspeed in args.deepspeed
    ]
    cases = [case for case in cases if (case.deepspeed, case.precision) != ("zero0", "bf16")]
    if not cases:
        parser.error("no case is left")
    failed = False
    for case, counted in zip(cases, count(cases, ranks=args.ranks), strict=True):
        print("\n".join(table(case, args.ranks, counted.rows)), flush=True)
        failed |= any(row.predicted not in (None, row.counted) for row in counted.rows)
    return int(failed)


def count(cases: Sequence[Case], *, ranks: int) -> list[Measured]:
    """Run cases one after the other and return what each measured; the ranks must count alike."""
    with tempfile.TemporaryDirectory() as name:
        llm = write_language_model(Path(name) / "language-model")
        orders = [_order(case, Path(name) / str(number), llm) for number, case in enumerate(cases)]
        records = run_ranks(orders, Path(name), ranks=ranks)
        counted = []
        for order, of_ranks in zip(orders, zip(*records, strict=True), strict=True):
            counts = [record["counted"] for record in of_ranks]
            if any(one != counts[0] for one in counts):
                raise RuntimeError(f"the ranks counted differently: {counts}")
            weights = [Weight(**weight) for weight in of_ranks[0]["weights"]]
            zero = _zero(order, ranks)
            predicted = step_traffic(weights, zero, forward_passes=order.accumulation)
            counted.append(
                Measured(
                    rows=rows_of(counts[0], predicted),
                    model_states=of_ranks[0]["model_states"],
                    planned=dataclasses.asdict(planned_model_states(weights, zero)),
                )
            )
    return counted


def _order(case: Case, folder: Path, llm: Path) -> Order:
    folder.mkdir()
    settings = json.loads(find_package_file("ds_configs", case.deepspeed, ".json").read_text())
    settings["zero_optimization"].update(case.changes)
    zero_file = folder / "zero.json"
    zero_file.write_text(json.dumps(settings))
    return Order(
        folder=str(folder),
        llm=str(llm),
        deepspeed=str(zero_file),
        precision=case.precision,
        accumulation=case.accumulation,
        recompute=case.recompute,
    )


def run_ranks(
    orders: Sequence[Any],
    folder: Path,
    *,
    ranks: int,
    module: str = "benchmarks.traffic_rank",
    argument: str | None = None,
    more: Mapping[str, str] | None = None,
) -> list[list[dict[str, Any]]]:
    """Carry out orders on ``ranks`` processes; return what each recorded of each.

    Args:
        orders: each with a folder, into which a rank writes.
        folder: for what the ranks say.
        ranks: processes.
        module: what a rank runs.
        argument: its argument; by default the orders as JSON.
        more: environment variables.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TOOLS), str(TOOLS.parent), os.environ.get("PYTHONPATH", "")]),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
        **(more or {}),
    }
    argument = argument or json.dumps([dataclasses.asdict(order) for order in orders])
    command = [sys.executable, "-m", module, argument]
    processes = []
    try:
        for rank in range(ranks):
            with (folder / f"stderr-{rank}").open("w") as stderr:
                processes.append(
                    subprocess.Popen(
                        command,
                        env=environment | {"RANK": str(rank)},
                        stdout=subprocess.DEVNULL,
                        stderr=stderr,
                    )
                )
        codes = [process.wait(timeout=TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        last = [(folder / f"stderr-{rank}").read_text()[-1500:] for rank, code in enumerate(codes) if code]
        raise RuntimeError(f"ranks ended with {codes}:\n" + "\n".join(last))
    return [
        [json.loads((Path(order.folder) / f"rank-{rank}.json").read_text()) for order in orders]
        for rank in range(ranks)
    ]


def _zero(order: Order, ranks: int) -> Zero:
    config = TrainingConfig(
        deepspeed=order.deepspeed,
        precision=order.precision,  # type: ignore[arg-type]
        steps=1,
        batch_size=VIDEOS * order.accumulation,
        accumulation=order.accumulation,
    )
    return read_zero(deepspeed_settings(config, world=ranks), ranks=ranks)


def rows_of(counted: Sequence[Mapping[str, Any]], predicted: Sequence[Collective]) -> list[Row]:
    """Return rows that compare counts with predictions by kind, then the traffic of model and loop."""
    planned: Counter[str] = Counter()
    for one in predicted:
        planned[one.kind] += one.bytes
    operations: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for one in counted:
        if one["who"] == "signllm" or one["bytes"] > SCALARS_BYTES:
            operations[one["who"], one["kind"]] += one["operations"]
            sizes[one["who"], one["kind"]] += one["operations"] * one["bytes"]
    kinds = sorted({kind for who, kind in sizes if who == "zero"} | set(planned))
    rows = [
        Row(
            kind=kind,
            operations=operations["zero", kind],
            counted=sizes["zero", kind],
            predicted=planned[kind],
        )
        for kind in kinds
    ]
    own = sorted(kind for who, kind in sizes if who == "signllm")
    return rows + [
        Row(
            kind=f"{kind}, own",
            operations=operations["signllm", kind],
            counted=sizes["signllm", kind],
            predicted=None,
        )
        for kind in own
    ]


def table(case: Case, ranks: int, rows: Sequence[Row]) -> list[str]:
    """Return a case as lines."""
    lines = [
        f"\n{case.name}, {ranks} ranks",
        f"  {'operation':<20}{'times':>6}{'bytes counted':>15}{'predicted':>12}",
    ]
    for row in rows:
        predicted = "-" if row.predicted is None else f"{row.predicted:,}"
        wrong = "  differs" if row.predicted not in (None, row.counted) else ""
        lines.append(f"  {row.kind:<20}{row.operations:>6}{row.counted:>15,}{predicted:>12}{wrong}")
    planned = [row for row in rows if row.predicted is not None]
    sent = [
        sum(
            Collective(kind=row.kind, purpose="", bytes=size).sent(ranks)  # type: ignore[arg-type]
            for row, size in zip(planned, sizes, strict=True)
        )
        for sizes in ([row.counted for row in planned], [row.predicted or 0 for row in planned])
    ]
    return [*lines, f"  {'a rank sends':<26}{sent[0]:>15,.0f}{sent[1]:>12,.0f}"]
