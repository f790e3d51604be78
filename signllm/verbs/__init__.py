"""The verbs in the order of a project, and how a command line is checked and run.

Whatever a verb needs is imported inside it, so that listing the verbs imports nothing else.
"""

import difflib
import functools
import gc
import os
import sys
from collections.abc import Sequence

from signllm.command import Job, Verb
from signllm.distributed.local_ranks import is_first_rank, reuse_freed_memory
from signllm.errors import UsageError
from signllm.verbs.ablate import ABLATE
from signllm.verbs.compare import COMPARE
from signllm.verbs.data import SHARD, SHARDS
from signllm.verbs.demo import DEMO
from signllm.verbs.doctor import DOCTOR
from signllm.verbs.jobs import launch_verb
from signllm.verbs.plan import PLAN
from signllm.verbs.results import EVALUATE, EXPORT, REPORT, SCORE
from signllm.verbs.serve import SERVE
from signllm.verbs.stages import COMPOSE, FINETUNE, PRETRAIN
from signllm.verbs.translate import TRANSLATE
from signllm.version import VERSION


def run(arguments: Sequence[str]) -> None:
    """Run one verb and let its errors through; each rank of a submitted job calls this."""
    gc.set_threshold(14_000)  # with 700, scanning the objects of imports took a tenth of the start-up
    reuse_freed_memory()
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries would interfere with ours
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not is_first_rank():
        sys.stdout = open(os.devnull, "w")  # only rank 0 prints results
    prepare(arguments)()


def prepare(arguments: Sequence[str]) -> Job:
    """Check a complete command line and return a function that runs it.

    Raises:
        UsageError: there is no such verb; the message suggests a similar one.
    """
    word, *rest = arguments or ["--help"]
    if word in ("-h", "--help", "help"):
        return functools.partial(print, overview())
    if word == "--version":
        return _print_version
    if word not in VERBS:
        near = difflib.get_close_matches(word, VERBS, n=1)
        raise UsageError(
            f"there is no verb {word!r}",
            where="signllm VERB",
            remedy=f"did you mean `signllm {near[0]}`?" if near else f"one of {', '.join(VERBS)}",
        )
    return VERBS[word].prepare(rest)


def overview() -> str:
    """Return the text of ``signllm --help``: the verbs in the order of a project."""
    from signllm import __doc__ as about

    lines = [(about or "").split("\n", 1)[0], "", "usage: signllm VERB ...", ""]
    lines += [f"  {name:<10} {verb.summary}" for name, verb in VERBS.items()]
    lines += ["", "Examples:", *(f"  {verb.example}" for verb in VERBS.values()), ""]
    lines += [
        "`signllm VERB --help` lists a verb's options. Exit code: 0 done, 1 failed, 2 bad usage or bad input."
    ]
    return "\n".join(lines)


def _print_version() -> None:
    print(f"signllm {VERSION}")


VERBS: dict[str, Verb] = {
    "doctor": DOCTOR,
    "demo": DEMO,
    "shard": SHARD,
    "shards": SHARDS,
    "pretrain": PRETRAIN,
    "compose": COMPOSE,
    "finetune": FINETUNE,
    "evaluate": EVALUATE,
    "translate": TRANSLATE,
    "export": EXPORT,
    "serve": SERVE,
    "score": SCORE,
    "report": REPORT,
    "compare": COMPARE,
    "ablate": ABLATE,
    "plan": PLAN,
    "launch": launch_verb(check=prepare, run=run),
}
