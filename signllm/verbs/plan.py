"""``signllm plan``: what stage 3 needs and takes on a cluster, before there is one; no weights, no GPU."""

import json as json_format
from pathlib import Path
from typing import Annotated, Any

from signllm.command import Job, Verb, prepare_job
from signllm.verbs.stages import named_recipe


def _plan(arguments: list[str]) -> Job:
    import tyro

    from signllm.cluster.roofline import MachineOptions
    from signllm.config import FinetuneConfig

    name, recipe, options = named_recipe(arguments)
    settings = Annotated[FinetuneConfig, tyro.conf.arg(name="")]
    resources, default = Annotated[MachineOptions, tyro.conf.arg(name="")], MachineOptions()

    def plan(
        *,
        llm: str | None = None,
        frames: int | None = None,
        seconds: float | None = None,
        text_tokens: int | None = None,
        init: Path | None = None,
        table: bool = False,
        json: bool = False,
        machine: resources = default,
        config: settings = recipe.finetune,
    ) -> None:
        """Plan.

        Args:
            llm: folder of a language model (its config.json is enough), its name on the hub if it was fetched
                before, or a known name such as llama-13b; as finetune's --llm.
            frames: of every video; as many as the recipe keeps of a long one (--data.max-frames), the most.
            seconds: the same in seconds of 25 frames.
            text_tokens: of every reference; the longest that the recipe lets through.
            init: run of stages 1 and 2, for its encoder and words; without, the recipe's encoder, and every
                character is a word.
            table: instead, README's table: 7B to 70B on one node of eight A100-80, H100 and H200.
            json: print JSON.
            machine: where, and which shares of its rates are reached.
            config: settings of the recipe, each can be changed, as for finetune.
        """
        from signllm.cluster.planning import PlanRequest, make_plan, readme_table

        described: Any = machine
        request = PlanRequest(
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
            print("\n".join(readme_table(request, described.machine())))
            return
        found = make_plan(request, described.machine())
        if json:
            print(json_format.dumps(found.record(), indent=2))
        else:
            _show(found)
        found.require_fit()

    return prepare_job(plan, options, verb="plan", about=PLAN)


def _show(found: Any) -> None:
    for lines in (found.head(), found.rows(), found.foot()):
        print(*lines, sep="\n", end="\n\n")


PLAN = Verb(
    "what stage 3 needs and takes with a language model on a cluster; needs no GPU",
    "signllm plan phoenix2014t --llm llama-13b --nodes 1 --gpus 8 --gpu h100",
    _plan,
)
