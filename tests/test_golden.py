"""Recorded losses of a few training steps: a change of the method shows here, wanted or not.

``tests/golden/losses.json`` holds what both stages logged when it was recorded; record anew, with a reason
in the commit, by ``SIGNLLM_RECORD_GOLDEN=1 pytest tests/test_golden.py``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from signllm.data.loading.batch import Batch
from signllm.models.language_model.language_model import LanguageModelConfig
from signllm.models.sign_llm import SignLLM, SignLLMConfig
from tests.models import parts

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
STEPS = 4
FLOAT_NOISE = 2e-3
"""Processors and torch releases round differently, and four steps of Adam magnify it."""


def train(model: nn.Module, batch: Batch, names: tuple[str, ...]) -> dict[str, list[float]]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    logged: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(STEPS):
        shares = model(batch)
        optimizer.zero_grad()
        shares["loss"].backward()
        optimizer.step()
        for name in names:
            logged[name].append(round(shares[name].item(), 5))
    return logged


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[float]]]:
    llm = parts.save_language_model(tmp_path_factory.mktemp("llm"))
    vq_sign = parts.vq_sign(parts.vq_config(quantizer={"kmeans_start": True}))
    vq_sign.initialize_codebook([parts.batch_of()])
    first = train(vq_sign, parts.batch_of(), ("loss", "l_cp", "l_q"))
    config = SignLLMConfig(language_model=LanguageModelConfig(path=str(llm), dtype="fp32"))
    model = SignLLM(vq_sign, parts.word_codebook(vq_sign), config)
    third = train(model, parts.batch_of(), ("loss", "l_sim", "l_mmd", "l_cp", "l_q"))
    return {"pretrain": first, "finetune": third}


def test_losses_are_those_that_were_recorded(logged: dict[str, dict[str, list[float]]]) -> None:
    if os.environ.get("SIGNLLM_RECORD_GOLDEN"):
        GOLDEN.write_text(json.dumps(logged, indent=1) + "\n", encoding="utf-8")
    recorded = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert logged.keys() == recorded.keys()
    for stage, losses in recorded.items():
        for name, values in losses.items():
            assert logged[stage][name] == pytest.approx(values, rel=FLOAT_NOISE), f"{stage} {name}"
