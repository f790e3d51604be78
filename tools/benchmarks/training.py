"""Time of a fine-tuning step with a frozen LLM: this project's loop compared with a plain torch loop.

Both train the same SignLLM (a LLaMA of random weights) on the same batches, from the same seeds, with the
same AdamW and precision, in one process, in turns. If their losses part, nothing is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import pstats
import resource
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.after_step import AfterStep, run_context
from benchmarks.training_model import SIZES, Size, Work, build, configured, draw_batch, write_folder
from benchmarks.training_sides import OURS, PLAIN, PlainLoop, Repeated, Rounds, Side
from signllm.config import FinetuneConfig
from signllm.distributed.local_ranks import leave_process_group
from signllm.distributed.ranks import start_distributed
from signllm.errors import UsageError
from signllm.stages.parameter_groups import parameter_groups
from signllm.training.engine import TrainingConfig, deepspeed_settings, import_deepspeed
from signllm.training.loop import fit
from signllm.training.standard_callbacks import standard_callbacks
from signllm.training.throughput import GIB, TERA, peak_operations

NOTES = """\
examples:
  tools/bench_training                                       the demo's model on this machine
  tools/bench_training --size tiny --rounds 2 --steps 2      seconds: does it run?
  tools/bench_training --size 7b --device cuda --json 7b.json
  tools/bench_training --size 7b --device cuda --work full --deepspeed zero2
  tools/bench_training --size demo --profile                 where both sides spend the time of this process

what is compared:
  ours    fit() with all that a run has: engine, ranks' reduction, log, TensorBoard, checks of every loss
  plain   forward, backward, clip_grad_norm_, fused AdamW (bf16: on master weights); no engine, no log
  loss    of every step of both, relative: at most 1e-4 apart in fp32, 2e-2 in bf16, or it ends with exit 1
  ratio   plain's seconds / ours, of the best rounds, and the median of the rounds' own, which counts (target:
          0.95). On a CPU that of CPU time counts, which other people's load does not lengthen
  MFU     operations of a step (4 per frozen LLM weight and token) / seconds / the GPU's peak (target: 0.5)
  memory  peak allocated on the GPU, the other side's left out; on a CPU the process's, of both sides"""

TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest relative difference of the two sides' losses. Measured in 60 steps of ``--size demo`` on a CPU."""
TARGET_RATIO, TARGET_MFU = 0.95, 0.5
WARM_ROUNDS = 1


def arguments() -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=NOTES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=tuple(SIZES), default="demo", help="of the language model")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if on_gpu else "cpu")
    parser.add_argument("--work", choices=("recipe", "full"), default="recipe", help="batch and lengths")
    parser.add_argument(
        "--signs",
        choices=("characters", "video"),
        default="characters",
        help="recorded characters (the frozen phase; most of it is the language model), or video",
    )
    parser.add_argument("--deepspeed", metavar="FILE", help="ZeRO file by name or path; the recipe's")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="the recipe's")
    parser.add_argument(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="recompute the language model's activations",
    )
    parser.add_argument("--videos", type=int, help="of a step")
    parser.add_argument("--frames", type=int, help="mean of a video; four make a character")
    parser.add_argument("--text-tokens", type=int, help="mean of a text")
    parser.add_argument("--spread", type=float, default=0.0, help="of lengths: 0.5 is half to one and a half")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    parser.add_argument("--threads", type=int, help="torch's threads; torch's default")
    parser.add_argument("--profile", action="store_true", help="one more round under cProfile, not counted")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    args = parser.parse_args()
    if args.device == "cuda" and not on_gpu:
        parser.error("torch sees no CUDA device here; remedy: --device cpu")
    for name in ("videos", "frames", "text_tokens", "rounds", "steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    if not 0 <= args.spread < 1:
        parser.error(f"--spread is {args.spread}; it must be at least 0 and below 1")
    return args


def work_of(args: argparse.Namespace, size: Size) -> Work:
    """Return what a step works on: the named work, changed by the options."""
    named = {name: getattr(args, name) for name in ("videos", "frames", "text_tokens")}
    chosen = {name: value for name, value in named.items() if value is not None}
    return replace(size.work[args.work], **chosen)


def training_of(config: FinetuneConfig, args: argparse.Namespace, work: Work) -> TrainingConfig:
    """Return the recipe's training for as many steps as are measured, its learning rate from the first on."""
    steps = args.steps * (WARM_ROUNDS + args.rounds + int(args.profile))
    return replace(
        config.training,
        deepspeed=args.deepspeed or config.training.deepspeed,
        batch_size=work.videos,
        accumulation=1,
        steps=steps,
        epochs=None,
        warmup_steps=0,
        schedule="constant",
        save_every=steps,
        validate_every=0,
    )


def measure(args: argparse.Namespace, device: torch.device, run: Path) -> dict[str, Any]:
    """Train both sides in turns; return the measurements."""
    size = SIZES[args.size]
    config = configured(size, precision=args.precision, checkpointing=args.checkpointing)
    work = work_of(args, size)
    training = training_of(config, args, work)
    drawn = [
        draw_batch(config, size, work, signs=args.signs, spread=args.spread, number=number)
        for number in range(args.steps)
    ]
    if device.type == "cuda":
        drawn = [batch.pin_memory() for batch in drawn]
    import_deepspeed()
    settings = deepspeed_settings(training, world=1)
    folder = write_folder(run / "language-model", size)

    def built(engine: dict[str, Any] | None) -> Any:
        return build(config, folder, device, signs=args.signs, deepspeed=engine)

    with allocated(device) as bytes_ours:
        ours = built(settings)
    with allocated(device) as bytes_plain:
        model = built(None)
        plain = PlainLoop(model, drawn, training, parameter_groups(model, training, config), device)
    rounds = Rounds(
        plain,
        device,
        steps=args.steps,
        warm=WARM_ROUNDS,
        profiled=WARM_ROUNDS + args.rounds if args.profile else None,
    )
    rounds.sides[OURS].kept_bytes, rounds.sides[PLAIN].kept_bytes = *bytes_ours, *bytes_plain
    rounds.begin(OURS)
    fit(
        ours,
        Repeated(drawn),
        config=training,
        context=run_context(run / "run", "finetune"),
        parameter_groups=parameter_groups(ours, training, config),
        callbacks=[*standard_callbacks(training, None), AfterStep(rounds.after_step)],
    )
    record = {
        "work": asdict(work),
        "deepspeed": training.deepspeed,
        "precision": training.precision,
        "language_model_parameters": sum(p.numel() for p in model.language_model.parameters()),
        "trained_parameters": sum(p.numel() for p in plain.trained),
        "tokens_per_step": plain.counted["tokens"] / plain.step,
        "operations_per_step": plain.counted["operations"] / plain.step,
        "sides": rounds.sides,
    }
    record["parted"] = parted(rounds.sides, TOLERANCE[training.precision])
    return record


@contextmanager
def allocated(device: torch.device) -> Iterator[list[int]]:
    """Give a list that holds, afterwards, the bytes allocated on a GPU inside; 0 on a CPU."""
    record: list[int] = []
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    yield record
    record.append(torch.cuda.memory_allocated(device) - before if device.type == "cuda" else 0)


def parted(sides: dict[str, Side], tolerance: float) -> str | None:
    """Return where the losses of both sides part, or None; a loss that is no number parts."""
    pairs = list(zip(sides[OURS].losses, sides[PLAIN].losses, strict=True))
    for step, (ours, plain) in enumerate(pairs, start=1):
        if not abs(ours - plain) <= tolerance * abs(plain):
            return f"step {step} of {len(pairs)}: loss {ours:.8g} of ours, {plain:.8g} of plain"
    return None


def rates(record: dict[str, Any], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return each side's figures and their ratios."""
    peak = peak_operations(device)
    sides: dict[str, Side] = record.pop("sides")
    rows = {}
    for name, side in sides.items():
        best = min(side.seconds) / args.steps
        per_second = record["operations_per_step"] / best
        rows[name] = {
            "best_s": best,
            "median_s": statistics.median(side.seconds) / args.steps,
            "best_cpu_s": min(side.cpu_seconds) / args.steps,
            "samples_per_s": record["work"]["videos"] / best,
            "teraflop_per_s": per_second / TERA,
            "mfu": per_second / peak if peak else None,
            "peak_gib": side.peak_bytes / GIB if device.type == "cuda" else None,
            "rounds_s": side.seconds,
            "rounds_cpu_s": side.cpu_seconds,
        }
    ours, plain = sides[OURS], sides[PLAIN]
    losses = zip(ours.losses, plain.losses, strict=True)
    return {
        **record,
        "sides": rows,
        "loss_first": plain.losses[0],
        "loss_last": plain.losses[-1],
        "loss_apart": max(abs(a - b) / abs(b) for a, b in losses),
        "ratio_best": rows[PLAIN]["best_s"] / rows[OURS]["best_s"],
        "ratio_median": _median_ratio(plain.seconds, ours.seconds),
        "ratio_cpu": _median_ratio(plain.cpu_seconds, ours.cpu_seconds),
        "process_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
    }


def _median_ratio(plain: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(plain, ours, strict=True))


def show(record: dict[str, Any], on_gpu: bool) -> None:
    """Print the measurements as a table."""
    work = record["work"]
    print(
        f"\na step: {work['videos']} videos, {record['tokens_per_step']:.0f} tokens of the language model, "
        f"{record['operations_per_step']:.3e} operations\n"
        f"language model {record['language_model_parameters']:,} parameters, frozen; "
        f"trained {record['trained_parameters']:,}; {record['precision']}, {record['deepspeed']}"
    )
    headers = ("", "best s", "median s", "cpu s", "samples/s", "TFLOP/s", "MFU", "peak GiB")
    lines = [headers]
    for name, row in record["sides"].items():
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.3f}"
        memory = "-" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        times = (f"{row[key]:.4f}" for key in ("best_s", "median_s", "best_cpu_s"))
        speed = (f"{row['samples_per_s']:.2f}", f"{row['teraflop_per_s']:.3g}")
        lines.append((name, *times, *speed, mfu, memory))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
    course = f"{record['loss_first']:.4f} to {record['loss_last']:.4f}"
    print(f"losses {course}, at most {record['loss_apart']:.1e} apart")
    counts = record["ratio_median" if on_gpu else "ratio_cpu"]
    print(
        f"ratio: {record['ratio_best']:.3f} (best), {record['ratio_median']:.3f} (median), "
        f"{record['ratio_cpu']:.3f} (CPU time, median); "
        f"target at least {TARGET_RATIO}: {_judge(counts >= TARGET_RATIO)} ({counts:.3f})"
    )
    mfu = record["sides"][OURS]["mfu"]
    if mfu is not None:
        print(f"MFU: {mfu:.3f}; target at least {TARGET_MFU}: {_judge(mfu >= TARGET_MFU)}")
    if not on_gpu:
        print(f"memory: the process used {record['process_peak_gib']:.2f} GiB at most, both sides in it")


def _judge(is_so: bool) -> str:
    return "reached" if is_so else "missed"


def show_profiles(sides: dict[str, Side]) -> None:
    """Print where each side's profiled round spent the time of this process."""
    for name, side in sides.items():
        if side.profile is not None:
            print(f"\nprofile of {name}")
            stats = pstats.Stats(side.profile).strip_dirs()
            stats.sort_stats("cumulative").print_stats(45)
            stats.sort_stats("tottime").print_stats(25)


def main() -> None:
    """Measure, print, write the JSON; exit 1 if the sides part or memory does not suffice."""
    args = arguments()
    if args.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    device = start_distributed().device
    facts = machine.facts(device)
    where = facts["machine"]["gpu"] or facts["machine"]["cpu"]
    print(f"{where}; {facts['threads']} threads; torch {facts['versions']['torch']}; {args.size}", flush=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            record = measure(args, device, Path(folder))
    except UsageError as error:
        sys.exit(f"bench_training: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(f"out of memory: {error}\n  remedy: fewer --videos, or --checkpointing")
    finally:
        leave_process_group()
    sides, differ = record["sides"], record.pop("parted")
    if differ:
        sys.exit(f"the sides do not train alike, so their times are not compared: {differ}")
    record = rates(record, args, device)
    show(record, device.type == "cuda")
    show_profiles(sides)
    if args.json:
        options = {
            name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        record = {**facts, "options": options, **record}
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
