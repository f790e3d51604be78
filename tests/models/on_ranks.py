"""The same work on one rank or on several, each a process: what the tests of agreement between ranks run.

``python -m tests.models.on_ranks STORE OUT LLM`` with RANK and WORLD_SIZE set
writes OUT.RANK.safetensors.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from signllm.distributed.collectives import gather_packed, gathered_parameters, reduce_sum
from signllm.models.language_model.adapters import VIRTUAL, LoraConfig, PromptTuningConfig
from signllm.models.language_model.language_model import GenerationConfig, LanguageModelConfig
from signllm.models.language_model.loading import load_model
from signllm.models.language_model.partitioned_loading import load_partitioned
from signllm.models.projector import ProjectorConfig
from signllm.models.sign_llm import SignLLM, SignLLMConfig, build_sign_llm
from signllm.package_files import package_folder
from signllm.training.engine import TrainingConfig, build_engine, deepspeed_settings, import_deepspeed
from signllm.training.engine_state import gather_engine_state
from tests import warm
from tests.models import parts
from tests.models.families import CAUSAL, ENCODER_DECODER

EMA = {"update": "ema", "kmeans_batches": 1, "revive_dead_after": 1, "decay": 0.5}
FSQ = {"update": "fsq", "levels": (4, 3)}
PADDED = (True, True, True, False)
ADAPTERS = LoraConfig(rank=2, alpha=64)
LEARNT = PromptTuningConfig(tokens=3)
STAGES = ("zero0", "zero1", "zero2", "zero3")


def run(processes: int, folder: Path, llm: Path) -> None:
    """Run everything on ``processes`` ranks, each a process, which writes its results into ``folder``."""
    out = folder / f"of{processes}"
    words = ("tests.models.on_ranks", f"{out}.store", str(out), str(llm))
    done = warm.run_ranks(*words, ranks=processes)
    assert not any(done.codes), done.stderr[-4000:]


def read_results(processes: int, folder: Path) -> list[dict[str, Tensor]]:
    """Return the results of each rank of :func:`run`."""
    return [load_file(folder / f"of{processes}.{rank}.safetensors") for rank in range(processes)]


def main() -> None:
    store, out, llm = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{store}")
    result = gathered(rank, world)
    for name, quantizer, negatives in (("gradient", {}, 6), ("ema", EMA, 0), ("fsq", FSQ, 0)):
        result |= {
            f"{name}/{key}": value for key, value in pretraining(rank, world, quantizer, negatives).items()
        }
    result |= {f"text/{key}": value for key, value in finetuning(rank, world, Path(llm)).items()}
    result |= {f"zero3/{key}": value for key, value in partitioned(rank, world, Path(llm)).items()}
    for name, value in partitioned(rank, world, Path(llm), quantizer=FSQ).items():
        result[f"zero3-fsq/{name}"] = value
    result |= count_wrong_weights(Path(out).parent, world)
    for stage in STAGES:
        result |= {
            f"{stage}/{key}": value for key, value in train_vq_sign_under_zero(stage, rank, world).items()
        }
    zero3 = json.loads((package_folder("ds_configs") / "zero3.json").read_text())
    zero3["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    cut = Path(f"{out}.{rank}.cut.json")
    cut.write_text(json.dumps(zero3))
    zero3["zero_optimization"]["zero_hpz_partition_size"] = world
    hpz = Path(f"{out}.{rank}.hpz.json")
    hpz.write_text(json.dumps(zero3))
    for name, stage, settings in (
        ("kept", cut, {}),
        ("recomputed", cut, {"recompute": True}),
        ("hpz", hpz, {}),
        ("offload", "zero3_offload", {}),
        ("mixed3", cut, {"dtype": "bf16"}),
        ("mixed2", "zero2", {"dtype": "bf16"}),
        ("half3", cut, {"dtype": "bf16", "precision": "bf16"}),
        ("half2", "zero2", {"dtype": "bf16", "precision": "bf16"}),
        ("adapted2", "zero2", {"lora": ADAPTERS}),
        ("adapted3", cut, {"lora": ADAPTERS}),
        ("adapted3recomputed", cut, {"lora": ADAPTERS, "recompute": True}),
        ("prompted2", "zero2", {"prompt_tuning": LEARNT}),
        ("prompted3", cut, {"prompt_tuning": LEARNT}),
        ("t5-2", "zero2", {"family": "t5"}),
        ("t5-prompted2", "zero2", {"family": "t5", "prompt_tuning": LEARNT}),
        ("t5-prompted3", cut, {"family": "t5", "prompt_tuning": LEARNT, "recompute": True}),
        ("t5-3", cut, {"family": "t5"}),
        ("t5-3recomputed", cut, {"family": "t5", "recompute": True}),
        ("mbart50-2", "zero2", {"family": "mbart50"}),
        ("mbart50-3", cut, {"family": "mbart50"}),
    ):
        losses = train_sign_llm(str(stage), rank, world, Path(llm), families=Path(out).parent, **settings)
        result |= {f"{name}/{step}": loss for step, loss in enumerate(losses)}
    save_file(
        {name: torch.as_tensor(value).contiguous().clone() for name, value in result.items()},
        f"{out}.{rank}.safetensors",
    )
    dist.destroy_process_group()


def count_wrong_weights(folder: Path, world: int) -> dict[str, Tensor]:
    """Return how many weights of each family differ from its file; the last has separate experts."""
    settings = deepspeed_settings(TrainingConfig(steps=1, batch_size=world, deepspeed="zero3"), world=world)
    result = {}
    for name in (*CAUSAL, *ENCODER_DECODER, "experts"):
        path = str(folder / name)
        kind = "encoder-decoder" if name in ENCODER_DECODER else "causal"
        cut = load_model(path, kind, dtype="fp32", deepspeed=settings)
        whole_model = load_model(path, kind, dtype="fp32")
        other = 0
        for (own, p), (theirs, expected) in zip(
            cut.named_parameters(), whole_model.named_parameters(), strict=True
        ):
            with gathered_parameters([p]):
                other += own != theirs or not torch.equal(p, expected)
        buffers = dict(whole_model.named_buffers())
        other += sum(not torch.equal(b, buffers[own]) for own, b in cut.named_buffers())
        other += cut.generation_config.to_dict() != whole_model.generation_config.to_dict()
        other += cut.training
        result[f"loaded/{name}"] = torch.tensor(other)
    auto, config = transformers.AutoModelForCausalLM, transformers.AutoConfig.from_pretrained(path)
    in_pieces = load_partitioned(auto, Path(path), config, settings, dtype=torch.float32)
    return result | {"stored-otherwise": torch.tensor(in_pieces is None)}


def gathered(rank: int, world: int) -> dict[str, Tensor]:
    """Return the gathered rows 10 * video + place of four videos, and the gradient of a sum of squares."""
    counts = [3, 1, 2, 4]
    local = range(rank, 4, world)
    rows = torch.cat([10.0 * video + torch.arange(counts[video]) for video in local])[
        :, None
    ].requires_grad_()
    everything = gather_packed(rows, torch.tensor([counts[video] for video in local]))
    (everything.square().sum() / world).backward()
    return {"gathered": everything.detach(), "rows": rows.detach(), "rows_grad": rows.grad}


def pretraining(rank: int, world: int, quantizer: dict, negatives: int) -> dict[str, Tensor]:
    """Return losses, summed gradients and codebook of three passes of VQ-Sign without an optimizer."""
    model = parts.vq_sign(
        parts.vq_config(quantizer=quantizer, negatives=negatives, same_video_share=0.5, exclude=1)
    )
    batches = [parts.batch_of(rank=rank, world=world, real=PADDED, epoch=epoch) for epoch in range(3)]
    result = {}
    for step, batch in enumerate(batches):
        shares = model(batch)
        result |= {f"{step}/{name}": reduce_sum(share.double()) for name, share in shares.items()}
        shares["loss"].backward()
    for name, parameter in model.named_parameters():
        result[f"grad/{name}"] = reduce_sum(parameter.grad)
    result["codebook"] = model.quantizer.codebook.detach().clone()
    model.initialize_codebook(batches)
    return result | {"kmeans": model.quantizer.codebook.detach()}


def train_vq_sign_under_zero(stage: str, rank: int, world: int) -> dict[str, Tensor]:
    """Return losses, codebook and weights of three steps of VQ-Sign with an EMA codebook in the engine."""
    settings = TrainingConfig(deepspeed=stage, steps=3, batch_size=4, learning_rate=1e-3)
    engine = build_engine(parts.vq_sign(parts.vq_config(quantizer=EMA, negatives=6)), None, settings)
    result = {}
    for epoch in range(3):
        shares = engine(parts.batch_of(rank=rank, world=world, real=PADDED, epoch=epoch))
        for name in ("loss", "l_cp", "l_q", "perplexity"):
            result[f"{name}{epoch}"] = reduce_sum(shares[name].detach().double())
        engine.backward(shares["loss"] * world)
        engine.step()
    weights, _ = gather_engine_state(engine)
    names = ("quantizer.codebook", "encoder.second.weight", "predictor.context.weight_hh_l0")
    return result | {name: weights[name] for name in names}


def train_sign_llm(
    stage: str,
    rank: int,
    world: int,
    llm: Path,
    *,
    recompute: bool = False,
    dtype: str = "fp32",
    precision: Literal["fp32", "bf16"] = "fp32",
    lora: LoraConfig | None = None,
    prompt_tuning: PromptTuningConfig | None = None,
    family: str | None = None,
    families: Path = Path(),
) -> list[Tensor]:
    """Three steps of SignLLM; both may recompute, the language model or all may have 16 bits, or adapters.

    ``family``: a language model of another family, from the folder ``families``, and the lengths of what it
    writes.
    """
    if family is not None:
        llm = families / family
    settings = TrainingConfig(deepspeed=stage, steps=3, batch_size=4, learning_rate=1e-3, precision=precision)
    import_deepspeed()
    engine_settings = deepspeed_settings(settings, world=world)
    model = sign_llm(
        llm,
        deepspeed=engine_settings,
        recompute=recompute,
        dtype=dtype,
        lora=lora,
        prompt_tuning=prompt_tuning,
    )
    engine = build_engine(model, None, settings)
    frozen = engine.module.language_model.model
    assert frozen.is_gradient_checkpointing == recompute
    assert {p.dtype for p in frozen.parameters()} == {torch.float32 if dtype == "fp32" else torch.bfloat16}
    losses = []
    for _ in range(3):
        shares = engine(parts.batch_of(rank=rank, world=world))
        losses.append(reduce_sum(shares["loss"].detach().double()))
        engine.backward(shares["loss"] * world)
        engine.step()
    if lora is not None:
        weights, _ = gather_engine_state(engine)
        moved = [weight.norm() for name, weight in weights.items() if "lora_B" in name]
        losses.append(torch.stack(moved).double().min())  # they begin at zero
    if prompt_tuning is not None:
        weights, _ = gather_engine_state(engine)
        losses.append(weights[VIRTUAL].double().norm())
    if family is not None:
        engine.eval()
        written = engine.module.generate(
            parts.batch_of(rank=rank, world=world), GenerationConfig(max_new_tokens=6)
        )
        own = torch.zeros(4)
        own[rank::world] = torch.tensor([float(len(one.text)) for one in written])
        losses.append(reduce_sum(own))
    return losses


def sign_llm(
    llm: Path,
    *,
    quantizer: dict | None = None,
    deepspeed: dict | None = None,
    recompute: bool = False,
    dtype: str = "fp32",
    lora: LoraConfig | None = None,
    prompt_tuning: PromptTuningConfig | None = None,
) -> SignLLM:
    torch.manual_seed(0)
    config = SignLLMConfig(
        vq_sign=parts.vq_config(encoder={"recompute": recompute}, quantizer=quantizer, negatives=4),
        projector=ProjectorConfig(hidden=12),
        language_model=LanguageModelConfig(
            path=str(llm),
            dtype=dtype,
            prompt="translate {language}",
            separator=":",
            gradient_checkpointing=recompute,
            lora=lora,
            prompt_tuning=prompt_tuning,
        ),
    )
    words = parts.word_codebook(parts.vq_sign(config.vq_sign))
    return build_sign_llm(config, words, deepspeed=deepspeed)


def finetuning(rank: int, world: int, llm: Path) -> dict[str, Tensor]:
    model = sign_llm(llm)
    shares = model(parts.batch_of(rank=rank, world=world, real=PADDED))
    shares["loss"].backward()
    trained = {name: p for name, p in model.named_parameters() if p.grad is not None}
    return {name: reduce_sum(share.double()) for name, share in shares.items()} | {
        f"grad/{name}": reduce_sum(parameter.grad) for name, parameter in trained.items()
    }


def partitioned(rank: int, world: int, llm: Path, *, quantizer: dict | None = None) -> dict[str, Tensor]:
    """Return this rank's share of the frozen model, losses and texts, with ZeRO-3 for all weights."""
    deepspeed = import_deepspeed()
    settings = {
        "train_micro_batch_size_per_gpu": 4 // world,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    model = sign_llm(llm, deepspeed=settings, quantizer=quantizer)
    frozen = list(model.language_model.model.parameters())
    local_elements = sum(p.ds_tensor.numel() for p in frozen)
    trainable = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(trainable, lr=1e-3), config=settings
    )
    result = {
        "local_elements": torch.tensor(local_elements),
        "elements": torch.tensor(sum(p.ds_numel for p in frozen)),
    }
    batch = parts.batch_of(rank=rank, world=world)
    recorded = parts.with_characters(batch, parts.vq_sign(model.config.vq_sign))
    for step, step_batch in enumerate((batch, batch, recorded)):
        shares = engine(step_batch)
        result[f"loss{step}"] = reduce_sum(shares["loss"].double())
        engine.backward(shares["loss"] * world)
        engine.step()
    engine.eval()
    result["codebook"] = model.vq_sign.quantizer.codebook.detach().clone() if quantizer else torch.zeros(1)
    texts = [generated.text for generated in engine.module.generate(batch)]
    return result | {
        "texts": torch.tensor([len(text) for text in texts]),
        "codes": model.words.codes * torch.ones(1),
    }


if __name__ == "__main__":
    main()
