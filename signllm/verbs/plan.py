"""``signllm plan``: what stage 3 needs and takes on a cluster, before there is one; no weights, no GPU."""

import json as json_format
from pathlib import Path
from typing import Annotated, Any

from signllm.command import Job, Verb, parse
from signllm.verbs.stages import named_recipe


def _plan(arguments: list[str]) -> Job:
    import tyro

    from signllm.config import FinetuneConfig

    name, recipe, options = named_recipe(arguments)
    settings = Annotated[FinetuneConfig, tyro.conf.arg(name="")]

    def plan(
        *,
        llm: str | None = None,
        nodes: int = 1,
        gpus: int = 8,
        gpu: str = "h100",
        frames: int | None = None,
        seconds: float | None = None,
        text_tokens: int | None = None,
        init: Path | None = None,
        memory_gib: float | None = None,
        bandwidth: float | None = None,
        link: float | None = None,
        network: float = 50.0,
        compute_share: float = 0.5,
        memory_share: float = 0.8,
        link_share: float = 0.8,
        launch_us: float = 5.0,
        table: bool = False,
        json: bool = False,
        config: settings = recipe.finetune,
    ) -> None:
        """Plan.

        Args:
            llm: folder of a language model (its config.json is enough), its name on the hub if it was fetched
                before, or a known name such as llama-13b; as finetune's --llm.
            nodes: machines.
            gpus: of each.
            gpu: its name: a100-40, a100-80, h100, h200, b200, a40, l40s, rtx-4090, rtx-3090.
            frames: of every video; as many as the recipe keeps of a long one (--data.max-frames), the most.
            seconds: the same in seconds of 25 frames.
            text_tokens: of every reference; the longest that the recipe lets through.
            init: run of stages 1 and 2, for its encoder and words; without, the recipe's encoder, and every
                character is a word.
            memory_gib: of a GPU, instead of its own.
            bandwidth: of a GPU's memory in GB/s, instead of its own.
            link: GB/s in one direction between the GPUs of a node, instead of theirs.
            network: GB/s in one direction between nodes, of a node.
            compute_share: of the GPU's peak that products are taken to reach.
            memory_share: of its memory's rate that reading and writing is taken to reach.
            link_share: of links and network.
            launch_us: microseconds that an operator is taken to need at least.
            table: instead, README's table: 7B to 70B on one node of eight A100-80, H100 and H200.
            json: print JSON.
            config: settings of the recipe, each can be changed, as for finetune.
        """
        from signllm.cluster.gpus import find_gpu
        from signllm.cluster.planning import Asked, answer, readme_table
        from signllm.cluster.roofline import Machine

        machine = Machine(
            gpu=find_gpu(gpu, memory_gib=memory_gib, bandwidth=bandwidth, link=link),
            nodes=nodes,
            gpus=gpus,
            network=network,
            compute_share=compute_share,
            memory_share=memory_share,
            link_share=link_share,
            launch_us=launch_us,
        )
        asked = Asked(
            recipe=name,
            default=recipe.finetune,
            config=config,
            vq_sign=recipe.pretrain.vq_sign,
            llm=llm,
            frames=frames if seconds is None else round(25 * seconds),
            text_tokens=text_tokens,
            init=init,
        )
        if table:
            return print(*readme_table(asked, machine), sep="\n")
        found = answer(asked, machine)
        _show(found, json=json)
        found.require_fit()

    return parse(plan, options, verb="plan", about=PLAN)


def _show(found: Any, *, json: bool) -> None:
    if json:
        print(json_format.dumps(found.record(), indent=2))
        return
    for lines in (found.head(), found.rows(), found.foot()):
        print(*lines, sep="\n", end="\n\n")


PLAN = Verb(
    "what stage 3 needs and takes with a language model on a cluster; needs no GPU",
    "signllm plan phoenix2014t --llm llama-13b --nodes 1 --gpus 8 --gpu h100",
    _plan,
)
