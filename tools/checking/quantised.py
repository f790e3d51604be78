"""A language model in 4 and 8 bits: bytes it takes, a training step with and without LoRA, a translation.

``python -m checking.quantised cuda`` (``cpu`` rehearses). A random LLaMA, so that nothing has to be fetched.
The gradient that reaches the signs must be near that of 16 bits, adapters must get one, and a text must be
written. Exit code: 0 all did, 1 not.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from checking.loading import write_model
from signllm.models.language_model import weight_quantization as language_model_quantization
from signllm.models.language_model.adapters import LoraConfig
from signllm.models.language_model.builder import build_language_model
from signllm.models.language_model.language_model import GenerationConfig, LanguageModel, LanguageModelConfig

COUNTS = torch.tensor([12, 7])
TEXTS, LANGUAGES = ["sign language sign", "language"], ["German", "German"]
FAR = {"none": 1e-6, "8bit": 0.2, "4bit": 0.5}
"""How far the gradient at the signs may be from that in 16 bits, as a share of its norm."""


def main() -> int:
    """Check each way, print a line of it; return the exit code."""
    device = torch.device(sys.argv[1])
    if device.type == "cpu":  # bitsandbytes can, for rehearsal
        language_model_quantization.device = lambda: device
    width, layers = (2048, 8) if device.type == "cuda" else (256, 2)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        write_model(
            Path(folder), layers=layers, width=width, vocabulary=2000, shard_bytes=10**9, std=width**-0.5
        )
        for lora in (None, LoraConfig(rank=8)):
            unquantized = torch.zeros(())
            for quantize, far in FAR.items():
                config = LanguageModelConfig(path=folder, quantize=quantize, lora=lora)
                model = build_language_model(replace(config, gradient_checkpointing=True)).to(device)
                gradient, problems = step(model, width, device)
                unquantized = gradient if quantize == "none" else unquantized
                distance = float((gradient - unquantized).norm() / unquantized.norm())
                if distance > far or (quantize != "none" and distance == 0.0):
                    problems.append(f"that is not within 0 to {far}")
                size = sum(p.nbytes for p in model.parameters()) / 1e6
                print(f"{quantize:<5}{'LoRA' if lora else 'frozen':<7}{size:8.1f} MB", end="")
                print(f"  gradient {distance:.3f} from 16 bits  {'; '.join(problems) or 'ok'}", flush=True)
                failed = failed or bool(problems)
    return 1 if failed else 0


def step(model: LanguageModel, width: int, device: torch.device) -> tuple[torch.Tensor, list[str]]:
    """Score two texts, go back, translate; return the gradient at the signs and what is wrong."""
    torch.manual_seed(1)
    signs = torch.randn(int(COUNTS.sum()), width).to(device).requires_grad_()
    model.train()(signs, COUNTS.to(device), TEXTS, LANGUAGES).losses.sum().backward()
    problems = []
    if not bool((signs.grad.abs().sum(dim=1) > 0).all()):
        problems.append("no gradient reaches the signs")
    trained = [p for p in model.parameters() if p.requires_grad]
    if any(p.grad is None or not bool(p.grad.isfinite().all()) for p in trained):
        problems.append("an adapter has no gradient")
    generation = GenerationConfig(max_new_tokens=4)
    written = model.eval().generate(signs.detach(), COUNTS.to(device), LANGUAGES, generation)
    if len(written) != len(TEXTS):
        problems.append("no translation")
    return signs.grad.float(), problems


if __name__ == "__main__":
    sys.exit(main())
