"""Load a random LLaMA from many safetensors under ZeRO-3 on several ranks, and record the memory of each.

A rank's private memory must stay within its share of the weights and one shard: what no file backs, that is
RssAnon and RssShmem of /proc/PID/status, sampled every millisecond from outside, above what the process used
before. Pages of the mapped shards are left out: the system takes them back when it needs them (and says how
many there were). Before that each rank has loaded a model of one narrow layer, so libraries do not count.

  tools/check_loading                        1.1 billion weights in bf16, shards of 200 MB, two ranks
  tools/check_loading --layers 4 --width 512 --shard-mb 4

Exit code: 0 within the bound and the weights are those of the file, 1 not, 2 no Linux account of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
MB = 1_000_000
WORDS = ("<s>", "</s>", "<unk>", "sign", "language")


def main() -> int:
    """Write the model, start the ranks, print what each took; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--width", type=int, default=2048, help="a multiple of 64")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--shard-mb", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero", default="zero3", help="zero3, or a file of stage 3")
    args = parser.parse_args()
    if not Path("/proc/self/status").exists():
        print("no /proc/self/status here\n  remedy: run this on Linux", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="check-loading-") as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        write_model(small, layers=1, width=64, vocabulary=len(WORDS), shard_bytes=MB)
        weights, largest = write_model(
            large,
            layers=args.layers,
            width=args.width,
            vocabulary=args.vocabulary,
            shard_bytes=args.shard_mb * MB,
        )
        shards = len(list(large.glob("*.safetensors")))
        print(f"{weights / 1e6:.0f} million weights, bf16, {2 * weights / MB:.0f} MB in {shards} shards")
        with ThreadPoolExecutor() as pool:
            command = [sys.executable, "-m", "checking.loading_rank", folder, args.zero]
            records = list(pool.map(lambda rank: watched(command, rank, args.ranks), range(args.ranks)))
    share = 2 * weights / args.ranks
    print(f"\n{'rank':<6}{'share':>9}{'shard':>9}{'weights':>9}{'peak':>9}{'mapped':>9}  MB")
    for record in records:
        numbers = (share, largest, record["resident"], record["peak"], record["mapped"])
        print(f"{record['rank']:<6}" + "".join(f"{number / MB:9.1f}" for number in numbers))
    problems = troubles(records, share=share, shard=largest)
    print(
        "", *(problems or ["peak <= share + shard on every rank, and the weights are the file's"]), sep="\n"
    )
    print(f"loading took {max(record['seconds'] for record in records):.1f} s")
    return 1 if problems else 0


def troubles(records: list[dict[str, Any]], *, share: float, shard: float) -> list[str]:
    """Return a line for each error in the reports of the ranks."""
    return [
        f"rank {record['rank']}: {what}"
        for record in records
        for what, holds in (
            (
                f"peak {record['peak'] / MB:.1f} MB is above {(share + shard) / MB:.1f}",
                record["peak"] > share + shard,
            ),
            (
                f"has {record['resident'] / MB:.1f} MB, not its share",
                abs(record["resident"] - share) > 0.001 * share,
            ),
            (
                f"{len(record['wrong'])} weights are not the file's: {record['wrong'][:3]}",
                bool(record["wrong"]),
            ),
        )
        if holds
    ]


def write_model(
    folder: Path, *, layers: int, width: int, vocabulary: int, shard_bytes: int, std: float = 0.02
) -> tuple[int, int]:
    """Write a random LLaMA in bf16, a shard at a time, as ``transformers`` saves one.

    Returns:
        Its number of weights, and the bytes of its largest shard.
    """
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    table = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=table, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 512),
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
        architectures=["LlamaForCausalLM"],
        bos_token_id=0,
        eos_token_id=1,
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in LlamaForCausalLM(config).named_parameters()}
    groups: list[list[str]] = [[]]
    for name, shape in shapes.items():
        group_bytes = sum(2 * shapes[name].numel() for name in groups[-1])
        if groups[-1] and group_bytes + 2 * shape.numel() > shard_bytes:
            groups.append([])
        groups[-1].append(name)
    torch.manual_seed(0)
    files = {}
    for number, names in enumerate(groups):
        file = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        shard = {name: torch.empty(shapes[name], dtype=torch.bfloat16).normal_(std=std) for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
        del shard
    total = sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": 2 * total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total, max(path.stat().st_size for path in folder.glob("*.safetensors"))


def watched(command: list[str], rank: int, ranks: int) -> dict[str, Any]:
    """Run one rank; return its report with the peaks of its private and of its mapped memory."""
    paths = (str(CHECKOUT), str(CHECKOUT / "tools"), os.environ.get("PYTHONPATH"))
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process, ThreadPoolExecutor() as pool:
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"rank {rank} ended before it was ready")
        before = memory(process.pid)
        peak, mapped = before
        loaded = pool.submit(process.stdout.readline)
        process.stdin.write("go\n")
        process.stdin.flush()
        while not loaded.done():
            private, file = memory(process.pid)
            peak, mapped = max(peak, private), max(mapped, file)
            time.sleep(0.001)
        if not loaded.result():
            raise RuntimeError(f"rank {rank} ended while it loaded")
        process.stdin.write("go\n")
        process.stdin.flush()
        record: dict[str, Any] = json.loads(loaded.result()) | json.loads(process.stdout.readline())
    return record | {"rank": rank, "peak": peak - before[0], "mapped": mapped - before[1]}


def memory(process: int) -> tuple[int, int]:
    """Return the bytes of a process in memory that no file backs, and that are pages of files."""
    lines = dict(
        line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line
    )
    sizes = {
        name: 1024 * int(lines.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssShmem", "RssFile")
    }
    return sizes["RssAnon"] + sizes["RssShmem"], sizes["RssFile"]
