"""The cost of checkpoints: bytes per trained parameter, time of training lost to saving, time of a start.

saving   One model of linear layers, trained by `fit` on ranks of this machine, together with a frozen part of
         twice its size: without saving, with every k-th step saved in the background (the default), and with
         the ranks waiting for each write. Seconds per step are the mean over all steps after the second.
bytes    The size of the checkpoints that these runs wrote.
start    `signllm pretrain` of the demo on a few videos, in a new process, from its start to the end of its
         first step: once from the beginning, once from its own checkpoint. No time is counted in two rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.after_step import AfterStep, run_context
from signllm.training import loop
from signllm.training.checkpoint import last_checkpoint
from signllm.training.engine import TrainingConfig
from signllm.training.training_log import read_log
from signllm.training.writer import BackgroundWriter
from tests.training.forks import on_forked_ranks, preload
from tests.training.toy import WIDTH, ToyBatch, ToyLoader
from tests.training.verb_kills import make_data

LAYER = 1024
SKIPPED = 2
"""Number of first steps that are not timed."""
CHECKOUT = Path(__file__).parents[2]
WAYS = ("never", "in the background", "waiting")
PARTS = (
    "imports",
    "ranks",
    "data",
    "model",
    "k-means",
    "checkpoint lookup",
    "engine",
    "resume",
    "first step",
)


class Layers(nn.Module):
    """Trained linear layers, then twice as many frozen layers in place of a language model."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, LAYER)
        self.trained = nn.ModuleList(nn.Linear(LAYER, LAYER) for _ in range(layers))
        self.frozen = nn.ModuleList(nn.Linear(LAYER, LAYER) for _ in range(2 * layers)).requires_grad_(False)

    def forward(self, batch: ToyBatch) -> dict[str, Tensor]:
        """Return this rank's share of a loss."""
        hidden = torch.tanh(self.first(batch.x))
        for layer in (*self.trained, *self.frozen):
            hidden = torch.tanh(layer(hidden))
        return {"loss": hidden.pow(2).sum() / (LAYER * batch.videos)}


def train(run: Path, config: TrainingConfig, layers: int, rank: int, world: int) -> None:
    """Train the layers as one rank, and write the times at which steps ended to ``run/times.json``."""
    torch.manual_seed(0)
    times: list[float] = []
    loop.fit(
        Layers(layers),
        ToyLoader(batch_size=config.batch_size, rank=rank, world=world),
        config=config,
        context=run_context(run, "bench"),
        callbacks=[AfterStep(lambda step, losses: times.append(time.perf_counter()))],
    )
    if rank == 0:
        (run / "times.json").write_text(json.dumps(times))


def saving(folder: Path, *, parameters: int, steps: int, every: int, ranks: int, zero_file: str) -> None:
    """Print a row for each way of saving, and the size of a checkpoint."""
    preload()
    layers = max(1, round(parameters / (LAYER * LAYER + LAYER)))
    plain = {"deepspeed": zero_file, "steps": steps, "batch_size": 64, "log_every": 1, "tensorboard": False}
    print(f"{'saving':<18}{'saves':>6}{'s per step':>12}{'more':>8}{'delay, s per save':>21}")
    without = 0.0
    for way in WAYS:
        run = folder / way.replace(" ", "-")
        config = TrainingConfig(**plain, save_every=steps if way == "never" else every)
        start = BackgroundWriter.start
        if way == "waiting":
            BackgroundWriter.start = _waiting(start)  # type: ignore[method-assign]
        codes, _ = on_forked_ranks(
            lambda rank, run=run, config=config: train(run, config, layers, rank, ranks), ranks, run
        )
        BackgroundWriter.start = start  # type: ignore[method-assign]
        if any(codes):
            sys.exit((run / "rank-0.txt").read_text())
        times = json.loads((run / "times.json").read_text())[SKIPPED - 1 :]
        per_step = (times[-1] - times[0]) / (len(times) - 1)
        without = without or per_step
        delays_s = [line["save_s"] for line in read_log(run) if "save_s" in line]
        each = f"{sum(delays_s) / len(delays_s):.3f}" if delays_s else "-"
        print(
            f"{way:<18}{len(delays_s):>6}{per_step:>12.3f}{per_step / without - 1:>8.1%}{each:>21}",
            flush=True,
        )
    print(sizes(folder / WAYS[1].replace(" ", "-")))


def _waiting(start: Callable[[BackgroundWriter, Callable[[], object]], None]) -> Callable[..., None]:
    def start_and_wait(writer: BackgroundWriter, write: Callable[[], object]) -> None:
        start(writer, write)
        assert writer._thread is not None
        writer._thread.join()

    return start_and_wait


def sizes(run: Path) -> str:
    """Return the size of the last checkpoint of a run, and the numbers of trained and frozen parameters."""
    folder = last_checkpoint(run)
    assert folder is not None
    counts = json.loads((run / "startup.json").read_text())["parameters"].values()
    trained, frozen = (sum(part[kind] for part in counts) for kind in ("trained", "frozen"))
    size = sum(path.stat().st_size for path in folder.iterdir())
    return (
        f"a checkpoint of {trained:,} trained parameters (and {frozen:,} frozen ones) has {size:,} bytes: "
        f"{size / trained:.4f} for each trained one"
    )


def started(run: Path, shards: Path, steps: int, begun: float) -> dict[str, float]:
    """Train stage 1 of the demo to a step in this process; return the seconds of each part of the start."""
    spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    from signllm.data.loading.mixture import Mixture, open_mixture
    from signllm.recipes import find_recipe
    from signllm.stages import pretrain

    spent["imports"] = time.time() - begun
    watched = {
        "ranks": [(pretrain, "start_distributed")],
        "data": [(Mixture, "split"), (pretrain, "open_run"), (pretrain, "training_batches")],
        "model": [(pretrain, "build_vq_sign")],
        "k-means": [(pretrain.build_vq_sign.__globals__["VQSign"], "start")],
        "checkpoint lookup": [(loop, "_checkpoint_of_rank_zero")],
        "engine": [(loop, "build_engine")],
        "resume": [(loop._Trainer, "resume")],
        "first step": [(loop._Trainer, "one_step")],
    }
    ended: list[float] = []
    for part, places in watched.items():
        for owner, name in places:
            setattr(owner, name, _timed(getattr(owner, name), part, spent, ended))
    recipe = find_recipe("demo").pretrain
    training = replace(recipe.training, steps=steps, epochs=None, batch_size=4, validate_every=99)
    pretrain.pretrain(replace(recipe, training=training), run, open_mixture(shards))
    spent["the rest"] = ended[0] - begun - sum(spent.values())
    spent["together"] = ended[0] - begun
    return spent


def _timed(
    function: Callable[..., Any], part: str, spent: dict[str, float], ended: list[float]
) -> Callable[..., Any]:
    def timed(*args: Any, **named: Any) -> Any:
        begun = time.time()
        try:
            return function(*args, **named)
        finally:
            if not ended:
                spent[part] += time.time() - begun
                if part == "first step":
                    ended.append(time.time())

    return timed


def starting(folder: Path) -> None:
    """Print the time of a start, from the beginning and from a checkpoint."""
    make_data(folder)
    starts = []
    for steps in (2, 4):
        order = [str(folder / "pretrain"), str(folder / "shards"), str(steps), str(time.time())]
        done = subprocess.run(
            [sys.executable, str(CHECKOUT / "tools" / "bench_checkpoint"), "--start", *order],
            env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(done.stderr)
        starts.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'start of pretrain, s':<22}{'from step 0':>14}{'from a checkpoint':>19}")
    for part in starts[0]:
        print(f"{part:<22}{starts[0][part]:>14.2f}{starts[1][part]:>19.2f}")


def main() -> None:
    """Print the requested tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("saving", "start"))
    parser.add_argument("--parameters", type=float, default=2e7, help="trained ones")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--every", type=int, default=10, help="steps between two saves")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--deepspeed", default="zero3")
    parser.add_argument("--start", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        run, shards, steps, begun = args.start
        print(json.dumps(started(Path(run), Path(shards), int(steps), float(begun))))
        return
    if args.every < 1 or args.steps < args.every + SKIPPED + 1:
        parser.error("--steps must be above --every by 3 or more")
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "start":
            saving(
                Path(folder),
                parameters=int(args.parameters),
                steps=args.steps,
                every=args.every,
                ranks=args.ranks,
                zero_file=args.deepspeed,
            )
        if args.only != "saving":
            starting(Path(folder))
