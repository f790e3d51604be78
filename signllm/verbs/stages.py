"""The training verbs, one per stage; every setting of a recipe's configuration is an option."""

from pathlib import Path
from typing import Annotated, Any

from signllm.command import Job, Verb, prepare_job, print_result, run_on_ranks


def named_recipe(arguments: list[str]) -> tuple[str, Any, list[str]]:
    """Split the optional RECIPE off the arguments: return its name, the recipe, and the other arguments.

    Without a name, the recipe is ``phoenix2014t``.
    """
    from signllm.recipes import find_recipe

    has_name = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if has_name else "phoenix2014t"
    return name, find_recipe(name), arguments[1:] if has_name else arguments


def _open_dataset(data: str, timeout_s: float) -> Any:
    """Join the ranks, so that one that cannot read the shards ends the others, and open the shards."""
    from signllm.data.loading.mixture import open_mixture
    from signllm.distributed.ranks import start_distributed

    start_distributed(timeout_s=timeout_s)
    return open_mixture(data)


def _pretrain(arguments: list[str]) -> Job:
    import tyro

    from signllm.config import PretrainConfig

    _, recipe, options = named_recipe(arguments)
    config_option = Annotated[Path | None, tyro.conf.arg(name="config")]
    settings = Annotated[PretrainConfig, tyro.conf.arg(name="")]

    def pretrain(
        *,
        run: Path,
        data: str,
        ranks: int = 1,
        config: settings = recipe.pretrain,
        config_file: config_option = None,
    ) -> None:
        """Run stage 1.

        Args:
            run: run folder; an unfinished run in it is resumed.
            data: folder or address of shards. Several are mixed: A:2,B:1 uses A's samples twice per epoch.
            ranks: processes on this machine that share the work.
            config: settings of the recipe; each can be changed.
            config_file: file whose settings replace those of the recipe: config.json of a run, or TOML.
                Options override it.
        """
        from signllm.stages.pretrain import pretrain

        def work() -> None:
            dataset = _open_dataset(data, config.training.timeout_s)
            pretrain(config, run=run, dataset=dataset).raise_if_preempted()

        run_on_ranks(
            "pretrain", arguments, ranks, work, folder=run, storage_timeout_s=config.data.storage_timeout_s
        )

    return prepare_job(pretrain, options, verb="pretrain", about=PRETRAIN)


def _compose(arguments: list[str]) -> Job:
    import tyro

    from signllm.config import ComposeConfig

    _, recipe, options = named_recipe(arguments)
    config_option = Annotated[Path | None, tyro.conf.arg(name="config")]
    settings = Annotated[ComposeConfig, tyro.conf.arg(name="")]

    def compose(
        *,
        run: Path,
        data: str,
        out: Path | None = None,
        ranks: int = 1,
        config: settings = recipe.compose,
        config_file: config_option = None,
    ) -> None:
        """Run stage 2.

        Args:
            run: run folder that `signllm pretrain` wrote, which receives the words.
            data: folder or address of shards, or a mixture, as for stage 1; weights have no effect.
            out: folder for the words, if one run has several word codebooks; by default the run folder.
            ranks: processes on this machine that share the work.
            config: settings of the recipe; each can be changed.
            config_file: file whose settings replace those of the recipe: config.json of a run, or TOML.
                Options override it.
        """
        from signllm.stages.compose import compose

        def work() -> None:
            dataset = _open_dataset(data, max(1800.0, 2 * config.data.storage_timeout_s))
            _print_words(compose(run, dataset, config, out=out))

        run_on_ranks(
            "compose", arguments, ranks, work, folder=run, storage_timeout_s=config.data.storage_timeout_s
        )

    return prepare_job(compose, options, verb="compose", about=COMPOSE)


def _print_words(words: Any) -> None:
    print_result({"characters": words.codes, "words": len(words.words), "alpha": words.alpha}, json=False)


def _finetune(arguments: list[str]) -> Job:
    import tyro

    from signllm.config import FinetuneConfig

    _, recipe, options = named_recipe(arguments)
    config_option = Annotated[Path | None, tyro.conf.arg(name="config")]
    settings = Annotated[FinetuneConfig, tyro.conf.arg(name="")]

    def finetune(
        *,
        run: Path,
        init: Path,
        data: str,
        words: Path | None = None,
        llm: str | None = None,
        ranks: int = 1,
        config: settings = recipe.finetune,
        config_file: config_option = None,
    ) -> None:
        """Run stage 3.

        Args:
            run: run folder; an unfinished run in it is resumed.
            init: run folder of stages 1 and 2, whose encoder and words are used.
            data: folder or address of shards, or a mixture, as for stage 1.
            words: folder with other words of the same encoder, as `signllm compose --out` wrote it.
            llm: folder of the language model, or its name on the hub if it was downloaded before; short for
                --sign-llm.language-model.path.
            ranks: processes on this machine that share the work.
            config: settings of the recipe; each can be changed.
            config_file: file whose settings replace those of the recipe: config.json of a run, or TOML.
                Options override it.
        """
        from signllm.stages.finetune import finetune

        config = config.with_llm(llm)

        def work() -> None:
            dataset = _open_dataset(data, config.training.timeout_s)
            outcome = finetune(config, run=run, init=init, dataset=dataset, words_folder=words)
            outcome.raise_if_preempted()

        run_on_ranks(
            "finetune", arguments, ranks, work, folder=run, storage_timeout_s=config.data.storage_timeout_s
        )

    return prepare_job(finetune, options, verb="finetune", about=FINETUNE)


PRETRAIN = Verb(
    "stage 1: learn characters from video (VQ-Sign)",
    "signllm pretrain phoenix2014t --data shards --run runs/pretrain --ranks 2",
    _pretrain,
)
COMPOSE = Verb(
    "stage 2: compose characters into words (CRA)",
    "signllm compose phoenix2014t --data shards --run runs/pretrain",
    _compose,
)
FINETUNE = Verb(
    "stage 3: align the words with a frozen LLM",
    "signllm finetune phoenix2014t --init runs/pretrain --data shards --llm llama-7b --run runs/finetune",
    _finetune,
)
