"""What checkpoints cost: bytes for each trained parameter, time that saving takes from training, a start.

saving   One model of linear layers, trained by `fit` on ranks of this machine, beside a frozen part of twice
         its size: without saving, with every k-th step saved beside the steps (as it is), and with the ranks
         waiting for each write. Seconds of a step are the mean over all steps after the second.
bytes    Of the checkpoints that these runs left.
start    `signllm pretrain` of the demo on a few videos, in a new process, from its start to the end of its
         first step: once from nothing, once from its own checkpoint. Each row takes what no row before took.
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
"""First steps that are not timed."""
CHECKOUT = Path(__file__).parents[2]
WAYS = ("never", "beside the steps", "waited for")
PARTS = ("imports", "ranks", "data", "model", "k-means", "checkpoint found", "engine", "resume", "first step")


class Layers(nn.Module):
    """Linear layers that learn, then twice as many that are frozen, as a language model is."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, LAYER)
        self.trained = nn.ModuleList(nn.Linear(LAYER, LAYER) for _ in range(layers))
        self.frozen = nn.ModuleList(nn.Linear(LAYER, LAYER) for _ in range(2 * layers)).requires_grad_(False)

    def forward(self, batch: ToyBatch) -> dict[str, Tensor]:
        """Return the share of a loss."""
        hidden = torch.tanh(self.first(batch.x))
        for layer in (*self.trained, *self.frozen):
            hidden = torch.tanh(layer(hidden))
        return {"loss": hidden.pow(2).sum() / (LAYER * batch.videos)}


def train(run: Path, config: TrainingConfig, layers: int, rank: int, world: int) -> None:
    """Train the layers as one rank and leave the times at which steps ended in ``run/times.json``."""
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
    """Print a row for each way of saving, and the bytes."""
    preload()
    layers = max(1, round(parameters / (LAYER * LAYER + LAYER)))
    plain = {"deepspeed": zero_file, "steps": steps, "batch_size": 64, "log_every": 1, "tensorboard": False}
    print(f"{'saving':<18}{'saves':>6}{'s per step':>12}{'more':>8}{'held up, s per save':>21}")
    without = 0.0
    for way in WAYS:
        run = folder / way.replace(" ", "-")
        config = TrainingConfig(**plain, save_every=steps if way == "never" else every)
        start = BackgroundWriter.start
        if way == "waited for":
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
        held = [line["save_s"] for line in read_log(run) if "save_s" in line]
        each = f"{sum(held) / len(held):.3f}" if held else "-"
        print(f"{way:<18}{len(held):>6}{per_step:>12.3f}{per_step / without - 1:>8.1%}{each:>21}", flush=True)
    print(sizes(folder / WAYS[1].replace(" ", "-")))


def _waiting(start: Callable[[BackgroundWriter, Callable[[], object]], None]) -> Callable[..., None]:
    def start_and_wait(writer: BackgroundWriter, write: Callable[[], object]) -> None:
        start(writer, write)
        assert writer._thread is not None
        writer._thread.join()

    return start_and_wait


def sizes(run: Path) -> str:
    """Return what the last checkpoint of a run takes, beside what is trained and what is frozen."""
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
    from signllm.data.mixture import Mixture, open_mixture
    from signllm.recipes import find_recipe
    from signllm.stages import pretrain

    spent["imports"] = time.time() - begun
    watched = {
        "ranks": [(pretrain, "start_distributed")],
        "data": [(Mixture, "split"), (pretrain, "open_run"), (pretrain, "training_batches")],
        "model": [(pretrain, "build_vq_sign")],
        "k-means": [(pretrain.build_vq_sign.__globals__["VQSign"], "start")],
        "checkpoint found": [(loop, "_checkpoint_of_rank_zero")],
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
    def timed(*given: Any, **named: Any) -> Any:
        begun = time.time()
        try:
            return function(*given, **named)
        finally:
            if not ended:
                spent[part] += time.time() - begun
                if part == "first step":
                    ended.append(time.time())

    return timed


def starting(folder: Path) -> None:
    """Print what a start takes, from nothing and from a checkpoint."""
    make_data(folder)
    found = []
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
        found.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'start of pretrain, s':<22}{'from nothing':>14}{'from a checkpoint':>19}")
    for part in found[0]:
        print(f"{part:<22}{found[0][part]:>14.2f}{found[1][part]:>19.2f}")


def main() -> None:
    """Print the tables that were asked for."""
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
    given = parser.parse_args()
    if given.start:
        run, shards, steps, begun = given.start
        print(json.dumps(started(Path(run), Path(shards), int(steps), float(begun))))
        return
    if given.every < 1 or given.steps < given.every + SKIPPED + 1:
        parser.error("--steps must be above --every by 3 or more")
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "start":
            saving(
                Path(folder),
                parameters=int(given.parameters),
                steps=given.steps,
                every=given.every,
                ranks=given.ranks,
                zero_file=given.deepspeed,
            )
        if given.only != "saving":
            starting(Path(folder))
