"""One rank of `tools/check_loading`: loads a model on request, then compares its weights with the file.

``python -m checking.loading_rank FOLDER ZERO`` with RANK and WORLD_SIZE set: ``ready`` when FOLDER/small
is loaded; on a line of input it loads FOLDER/large and prints bytes and seconds; on another it prints the
weights that are not those of the file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import nn

from signllm.distributed.collectives import gathered_parameters
from signllm.models.language_model.builder import build_language_model
from signllm.models.language_model.language_model import LanguageModelConfig
from signllm.training.engine import TrainingConfig, deepspeed_settings, import_deepspeed


def main() -> None:
    """Follow the requests of the process that measures the memory."""
    folder, zero = Path(sys.argv[1]), sys.argv[2]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{folder}/store")
    import_deepspeed()
    settings = deepspeed_settings(TrainingConfig(steps=1, batch_size=world, deepspeed=zero), world=world)
    build_language_model(LanguageModelConfig(path=str(folder / "small")), deepspeed=settings)
    print("ready", flush=True)
    sys.stdin.readline()
    begun = time.perf_counter()
    model = build_language_model(LanguageModelConfig(path=str(folder / "large")), deepspeed=settings).model
    resident = sum(getattr(p, "ds_tensor", p).nbytes for p in model.parameters())
    print(json.dumps({"resident": resident, "seconds": time.perf_counter() - begun}), flush=True)
    sys.stdin.readline()
    print(json.dumps({"wrong": unlike(model, folder / "large")}), flush=True)
    dist.destroy_process_group()


def unlike(model: nn.Module, folder: Path) -> list[str]:
    """Return the names of weights that are not what the file says; all ranks, one weight at a time."""
    files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    wrong = []
    for name, p in model.named_parameters():
        with gathered_parameters([p]), safe_open(folder / files[name], "pt") as file:
            if not torch.equal(p, file.get_tensor(name)):
                wrong.append(name)
    return wrong


if __name__ == "__main__":
    main()
