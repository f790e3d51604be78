"""The demo in small: 32 training videos and a language model that hardly learns.

``python -m tests.demo.small FOLDER [SEED]`` runs it as a program of its own, to be killed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from signllm.demo.demonstration import Demo, DemoConfig
from signllm.demo.studio import StudioConfig
from signllm.demo.text_model import TextModelConfig
from signllm.errors import UsageError
from signllm.recipes import find_recipe

SIZES = {"train": 32, "dev": 2, "test": 4}


def small_demo(out: Path, *, seed: int = 0, ranks: int = 2) -> Demo:
    config = DemoConfig(
        studio=StudioConfig(**SIZES, seed=seed), text_model=TextModelConfig(steps=12, layers=1)
    )
    return Demo(out, config, find_recipe("demo"), ranks=ranks)


if __name__ == "__main__":
    try:
        small_demo(Path(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0).run()
    except UsageError as error:
        sys.exit(f"refused: {error}")
