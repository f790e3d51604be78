"""``signllm plan``: memory and time of stage 3 on a cluster, computed without weights and without a GPU."""

import json as json_format
from pathlib import Path
from typing import Annotated, Any

from signllm.command import Job, Verb, prepare_job
from signllm.verbs.stages import named_recipe


def _plan(arguments: list[str]) -> Job:
    import tyro

    from signllm.cluster.planning.roofline import MachineOptions
    from signllm.config import FinetuneConfig

    name, recipe, options = named_recipe(arguments)
    config_option = Annotated[Path | None, tyro.conf.arg(name="config")]
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
        config_file: config_option = None,
    ) -> None:
        """Plan the memory and time of stage 3.

        Args:
            llm: language model as for finetune's --llm: a folder (its config.json is enough), its name on the
                hub if it was downloaded before, or a known name such as llama-13b.
            frames: frames of every video; by default the maximum that the recipe keeps of a long video
                (--data.max-frames).
            seconds: the same in seconds of 25 frames.
            text_tokens: tokens of every reference; by default the maximum of the recipe.
            init: run folder of stages 1 and 2, whose encoder and words are used; by default the recipe's
                encoder, with every character as a word.
            table: print the table of signllm/models/README.md instead: 7B to 70B on one node of eight
                A100-80, H100 and H200.
            json: print the result as JSON.
            machine: the machine, and which shares of its rates are reached.
            config: settings of the recipe; each can be changed, as for finetune.
            config_file: file whose settings replace those of the recipe: config.json of a run, or TOML.
                Options override it.
        """
        from signllm.cluster.planning.planning import PlanRequest, make_plan, readme_table

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
        result = make_plan(request, described.machine())
        if json:
            print(json_format.dumps(result.record(), indent=2))
        else:
            _show(result)
        result.require_fit()

    return prepare_job(plan, options, verb="plan", about=PLAN)


def _show(result: Any) -> None:
    for lines in (result.head(), result.rows(), result.foot()):
        print(*lines, sep="\n", end="\n\n")


PLAN = Verb(
    "plan memory and time of stage 3 on a cluster; needs no GPU",
    "signllm plan phoenix2014t --llm llama-13b --nodes 1 --gpus 8 --gpu h100",
    _plan,
)
