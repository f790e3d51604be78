"""Load a language model as one of several ranks and tell the memory it took, in MiB.

``python -m tests.models.loading STORE SMALL LLM ZERO`` with RANK and WORLD_SIZE set prints one JSON line:
``held`` (weights here), ``peak`` (private memory above that of before, at its height), ``mapped`` (pages of
the file, which the system takes back when it needs them). SMALL is loaded first: libraries do not count.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from signllm.models.language_model import LanguageModelConfig, build_language_model
from signllm.training.engine import TrainingConfig, deepspeed_settings, import_deepspeed
from tests.models import parts

MIB = 2**20


def save_bigger(folder: Path, *, layers: int) -> int:
    """Write a random LLaMA of 12.8 million weights a layer in bf16; return its bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    parts.save_language_model(folder)
    config = LlamaConfig.from_pretrained(folder)
    config.update(
        {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": layers, "head_dim": 128}
        | {"num_attention_heads": 8, "num_key_value_heads": 8}
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return sum(p.nbytes for p in model.parameters())


def resident() -> dict[str, float]:
    """Return private and file-backed resident memory of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        name: int(lines[key].split()[0]) / 1024 for name, key in (("peak", "RssAnon"), ("mapped", "RssFile"))
    }


def main() -> None:
    store, small, llm, zero = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{store}")
    import_deepspeed()
    settings = deepspeed_settings(TrainingConfig(steps=1, batch_size=world, deepspeed=zero), world=world)
    build_language_model(LanguageModelConfig(path=small), deepspeed=settings)
    before = resident()
    most, done = dict(before), threading.Event()

    def watch() -> None:
        while not done.is_set():
            most.update({name: max(most[name], value) for name, value in resident().items()})
            time.sleep(0.0005)

    watching = threading.Thread(target=watch)
    watching.start()
    model = build_language_model(LanguageModelConfig(path=llm), deepspeed=settings)
    done.set()
    watching.join()
    held = sum(getattr(p, "ds_tensor", p).nbytes for p in model.model.parameters())
    told = {name: most[name] - before[name] for name in most}
    print(json.dumps({"rank": rank, "held": held / MIB, **told}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
