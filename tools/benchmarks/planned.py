"""Peak memory of a rank in a training step: the prediction of `signllm plan` compared with a measurement.

A small SignLLM, encoder learning, with a LLaMA of random weights is trained for a few steps by the project's
own loop, on gloo ranks of this machine or on one GPU. Measured is what is allocated at most in the last step
(:mod:`benchmarks.planned_rank`), less what was before: libraries, of which a plan does not speak. On a CPU
what ZeRO offloads counts too. Buckets are cut to the size of the model, else they would hide the rest.
Exit code 1: some prediction differs by more than the tolerance.

  tools/check_plan                                    on one and on two CPU ranks, some minutes
  tools/check_plan --ranks 1 --deepspeed zero3 --checkpointing
  tools/check_plan --device cuda --size 1b            on a GPU
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.planned_rank import Order
from benchmarks.traffic import run_ranks
from benchmarks.training_model import Size, word_codebook, write_folder
from signllm.cluster.planning.gpus import find_gpu
from signllm.cluster.planning.roofline import Machine
from signllm.cluster.planning.setups import Setup, open_project, setup_memory
from signllm.config import FinetuneConfig
from signllm.package_files import find_package_file
from signllm.recipes import find_recipe
from signllm.validation import to_plain

TOLERANCE = 0.1
CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Every block above 64 KB is a mapping of its own, and returned to the system when it is freed."""
THIN_RESNET = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 64, 128],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of what is trained: a LLaMA, an encoder, and a rank's part of a batch."""

    llama: Mapping[str, Any]
    backbone: Mapping[str, Any]
    width: int
    frame_size: int
    videos: int
    frames: int
    text_tokens: int
    bucket: int


def _llama(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 11 * width // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
    }


SHAPES = {
    "tiny": Shape(
        llama=_llama(256, 6, 1024),
        backbone=THIN_RESNET,
        width=64,
        frame_size=48,
        videos=4,
        frames=37,
        text_tokens=32,
        bucket=1_000_000,
    ),
    "small": Shape(
        llama=_llama(512, 12, 4096),
        backbone=THIN_RESNET,
        width=128,
        frame_size=64,
        videos=4,
        frames=61,
        text_tokens=64,
        bucket=4_000_000,
    ),
    "1b": Shape(
        llama=_llama(2048, 20, 32000),
        backbone={
            "embedding_size": 64,
            "hidden_sizes": [64, 128, 256, 512],
            "depths": [2, 2, 2, 2],
            "layer_type": "basic",
        },
        width=1024,
        frame_size=224,
        videos=8,
        frames=150,
        text_tokens=64,
        bucket=50_000_000,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run."""

    deepspeed: str
    checkpointing: bool
    ranks: int
    precision: Literal["fp32", "bf16"]
    shape: Shape

    @property
    def name(self) -> str:
        """The description of the case for the table."""
        many = f"{self.ranks} rank{'s' if self.ranks > 1 else ''}"
        return f"{self.deepspeed}, {self.precision}, {many}" + (", recomputed" if self.checkpointing else "")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The predicted and the measured memory in bytes, of the rank that uses most."""

    predicted: int
    measured: int

    @property
    def off(self) -> float:
        """The error of the prediction as a share of the measured value."""
        return self.predicted / self.measured - 1


def compare(case: Case, device: str = "cpu") -> Compared:
    """Predict and measure one case."""
    with tempfile.TemporaryDirectory() as name:
        folder, shape = Path(name), case.shape
        zero_file = folder / "zero.json"
        settings = json.loads(find_package_file("ds_configs", case.deepspeed, ".json").read_text())
        cut = {"reduce_bucket_size": shape.bucket, "stage3_prefetch_bucket_size": shape.bucket}
        settings["zero_optimization"].update(
            {key: size for key, size in cut.items() if key in settings["zero_optimization"]}
        )
        zero_file.write_text(json.dumps(settings))
        llm = write_folder(folder / "language-model", Size(recipe="", llama=shape.llama, work={}))
        config = configured(case, str(zero_file))
        order = Order(
            folder=name,
            llm=str(llm),
            config=to_plain(config),
            llama=shape.llama,
            videos=shape.videos,
            frames=shape.frames,
            text_tokens=shape.text_tokens,
        )
        warm = replace(order, folder=str(folder / "warm-up"), llm=str(folder / "tiny"), videos=1, frames=13)
        tiny = replace(warm, llama=_llama(64, 2, 64))
        write_folder(folder / "tiny", Size(recipe="", llama=tiny.llama, work={}))
        predicted = _predicted(config, str(llm), case, device)
        argument = json.dumps([dataclasses.asdict(part) for part in (tiny, order)])
        environment = {} if device == "cuda" else CPU
        (records,) = zip(
            *run_ranks(
                [order],
                folder,
                ranks=case.ranks,
                module="benchmarks.planned_rank",
                argument=argument,
                more=environment,
            ),
            strict=True,
        )
        assert all(record["device"].startswith(device) for record in records), records
        return Compared(predicted=predicted, measured=max(record["peak_bytes"] for record in records))


def configured(case: Case, zero_file: str) -> FinetuneConfig:
    """Return the paper's recipe with this case's shapes."""
    recipe, shape = find_recipe("phoenix2014t"), case.shape
    encoder = replace(
        recipe.pretrain.vq_sign.encoder, backbone_config=dict(shape.backbone), width=shape.width
    )
    config = recipe.finetune
    model = replace(
        config.sign_llm.language_model,
        gradient_checkpointing=case.checkpointing,
        dtype=case.precision,
        attention="sdpa",
    )
    sign_llm = replace(
        config.sign_llm, vq_sign=replace(recipe.pretrain.vq_sign, encoder=encoder), language_model=model
    )
    training = replace(
        config.training,
        deepspeed=zero_file,
        precision=case.precision,
        batch_size=shape.videos * case.ranks,
    )
    return replace(
        config, sign_llm=sign_llm, training=training, data=replace(config.data, size=shape.frame_size)
    )


def _predicted(config: FinetuneConfig, llm: str, case: Case, device: str) -> int:
    """Return what ``signllm plan`` says, with the words that the measured model has."""
    assert config.sign_llm.vq_sign is not None
    project = open_project(
        config,
        llm,
        frames=case.shape.frames,
        text_tokens=case.shape.text_tokens,
        words=word_codebook(config.sign_llm.vq_sign),
    )
    way = Setup(deepspeed=config.training.deepspeed, checkpointing=case.checkpointing)
    needed = setup_memory(project, Machine(gpu=find_gpu("h200"), gpus=case.ranks), way)
    return needed.peak + (needed.host if device == "cpu" else 0)


def cases(args: argparse.Namespace) -> list[Case]:
    """Return the cases of a command line."""
    shape = SHAPES[args.size]
    recomputed = (False, True) if args.checkpointing is None else (args.checkpointing,)
    return [
        Case(deepspeed=name, checkpointing=on, ranks=ranks, precision=args.precision, shape=shape)
        for ranks in args.ranks
        for name in args.deepspeed
        for on in recomputed
        if (name, args.precision) != ("zero0", "bf16")
    ]


def main() -> int:
    """Compare case by case, print a table, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=tuple(SHAPES), default="small")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="on a GPU: 1")
    parser.add_argument("--deepspeed", nargs="+", default=["zero0", "zero2", "zero3"], metavar="NAME")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="both")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
    if args.device == "cuda" and args.ranks != [1]:
        args.ranks = [1]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    records = []
    print(f"{'MiB at the peak of a step':<40}{'predicted':>10}{'measured':>10}{'off':>8}", flush=True)
    for case in cases(args):
        compared = compare(case, args.device)
        wrong = "  above tolerance" if abs(compared.off) > TOLERANCE else ""
        sizes = f"{compared.predicted / 2**20:>10.1f}{compared.measured / 2**20:>10.1f}"
        print(f"{case.name:<40}{sizes}{compared.off:>+8.1%}{wrong}", flush=True)
        records.append({"case": case.name, **dataclasses.asdict(compared), "off": compared.off})
    if args.json:
        args.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    return int(any(abs(compared["off"]) > TOLERANCE for compared in records))


if __name__ == "__main__":
    sys.exit(main())
