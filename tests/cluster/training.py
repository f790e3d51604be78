"""What a rank of a test's job runs: the stages in miniature, long enough to be stopped, or to die.

``python -m tests.cluster.training FOLDER RUN`` is the rank that nobody stops.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from signllm.data.loading.mixture import open_mixture
from signllm.distributed.local_ranks import leave_process_group
from signllm.stages.finetune import finetune
from tests.stages import path


def finetune_on_rank(arguments: Sequence[str]) -> None:
    """Fine-tune ``FOLDER/pretrain`` into the folder ``RUN``; the arguments are FOLDER and RUN."""
    folder, run = map(Path, arguments)
    config = path.finetune_config(folder / "llm", epochs=12, deepspeed="zero3")
    dataset = open_mixture(folder / "shards")
    finetune(config, run=run, init=folder / "pretrain", dataset=dataset).raise_if_preempted()
    leave_process_group()


def die_on_rank(arguments: Sequence[str]) -> None:
    """Train the toy into the folder RUN; in its third step rank RANK has the trouble KIND."""
    from signllm.distributed.ranks import start_distributed
    from signllm.training.engine import TrainingConfig
    from signllm.training.loop import fit
    from tests.training import run_toy, toy

    run, kind, rank = arguments
    config = TrainingConfig(deepspeed="zero2", steps=200, batch_size=4, tensorboard=False, log_every=1)
    ranks = start_distributed(timeout_s=config.timeout_s)
    model = toy.build()
    model.__class__ = type("Accident", (run_toy.Trouble,), {"kind": kind, "at": 2, "rank": int(rank)})
    loader = toy.ToyLoader(batch_size=4, rank=ranks.rank, world=ranks.world)
    fit(model, loader, config=config, context=toy.toy_context(Path(run)))


def verb_on_rank(arguments: Sequence[str]) -> None:
    """Run a verb, its first attempt held at PLACE until it is warned; the arguments are PLACE, FOLDER, verb.

    PLACE ``verb`` is before the verb begins, ``video`` where a rank reads its second video; ``translation``
    where it translates its second batch. In FOLDER ``held-RANK`` says that a rank is there, and
    ``begun-ATTEMPT-RANK`` which videos it has begun to read or to translate.
    """
    from signllm import recipes
    from signllm.data.loading.sample_source import VideoSource
    from signllm.distributed.preemption import preemption_flag
    from signllm.models.sign_llm import SignLLM
    from signllm.verbs import run
    from tests.cluster.slurm import until
    from tests.cluster.tiny_signllm import tiny

    place, folder, *words = arguments
    rank, attempt = os.environ["RANK"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    begun: set[str] = set()
    load, generate = VideoSource.load, SignLLM.generate

    def hold(asked: Any) -> None:
        if attempt == 0:
            Path(folder, f"held-{rank}").touch()
            until(asked, "a warning", timeout_s=100)

    def begin(ids: Sequence[str]) -> None:
        begun.update(ids)
        Path(folder, f"begun-{attempt}-{rank}").write_text("\n".join(begun))
        if len(begun) == 2:
            with preemption_flag() as flag:
                hold(lambda: flag.requested)

    def paused_load(self: VideoSource, index: int, **drawn: Any) -> Any:
        begin([self.split.samples[index].id])
        return load(self, index, **drawn)

    def paused_generate(self: SignLLM, batch: Any, *rest: Any) -> Any:
        begin(batch.ids)
        return generate(self, batch, *rest)

    if place == "verb":
        hold(lambda: False)
    elif place == "video":
        VideoSource.load = paused_load  # type: ignore[method-assign, assignment]
    elif place == "translation":
        SignLLM.generate = paused_generate  # type: ignore[method-assign, assignment]
    recipes.RECIPES["tiny"] = tiny
    run(words)


def wait_for_warning(arguments: Sequence[str]) -> None:
    """Leave as a stage does that was warned; the arguments are a FOLDER for ``waiting-RANK`` and LISTENS.

    Without LISTENS the verb has not begun to take warnings: submitit's handler has them.
    """
    import time

    from signllm.distributed.local_ranks import StoppedEarlyError
    from signllm.distributed.preemption import preemption_flag
    from tests.cluster.slurm import until

    folder, listens = arguments
    waiting = Path(folder, f"waiting-{os.environ['RANK']}")
    if not listens:
        waiting.touch()
        time.sleep(100)
    with preemption_flag() as flag:
        waiting.touch()
        until(lambda: flag.requested, "a warning", timeout_s=100)
    raise StoppedEarlyError("asked to stop: saved after step 7; the same command continues")


def print_place(arguments: Sequence[str]) -> None:
    """Print the cores and the memory limit that this rank got, and variables of its environment."""
    import json

    names = ("RANK", "WORLD_SIZE", *arguments)
    variables = {name: os.environ.get(name) for name in names}
    print(json.dumps({"cores": sorted(os.sched_getaffinity(0))} | variables))


def ablate_on_rank(arguments: Sequence[str]) -> None:
    """Run ``ablate`` on FOLDER's recipe in miniature; the arguments are FOLDER and the verb's options."""
    from signllm import recipes
    from signllm.verbs import run

    folder, *options = arguments
    recipes.RECIPES["tiny"] = lambda: recipes.Recipe(
        pretrain=path.PRETRAIN, compose=path.COMPOSE, finetune=path.finetune_config(Path(folder) / "llm")
    )
    run(["ablate", "tiny", "--data", f"{folder}/shards", *options])
    leave_process_group()


if __name__ == "__main__":
    finetune_on_rank(sys.argv[1:])
