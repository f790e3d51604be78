"""The files of a language model's folder: where it lies, and whether what is read of it is there and whole.

People bring folders that were cloned without git-lfs, copied in part, or hold something else than a model.
All that is refused here, by the name of the file and with the remedy, before anything is loaded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from signllm.errors import UsageError

TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
"""Files that hold a tokenizer's words; what else a folder has of it does not do."""
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
TEMPLATES = ("chat_template.*", "additional_chat_templates/*")
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
POINTER = b"version https://git-lfs"
"""First bytes of the small file that git leaves in place of a large one."""
FETCH_AGAIN = "fetch or copy the model again, in full"


def model_folder(name: str) -> Path:
    """Return the folder of a language model: ``name`` itself, or the copy that the hub's cache holds of it.

    Nothing is fetched: nodes of a cluster often cannot, and a thousand ranks should not.

    Raises:
        UsageError: it is neither a folder of a model nor in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if (Path(name) / "config.json").is_file():
        return Path(name)
    remedy = "give the folder of a language model, weights and tokenizer in it"
    if name and not Path(name).exists() and name.count("/") <= 1:
        remedy += f", or fetch it from the hub first: hf download {name}"
        with contextlib.suppress(LocalEntryNotFoundError, HFValidationError):
            cached = Path(snapshot_download(name, local_files_only=True))
            if (cached / "config.json").is_file():
                return cached
    what = "there is no language model" if name else "no language model is given"
    if name and Path(name).is_dir():
        what, remedy = _what_else(Path(name), remedy)
    raise UsageError(what, where=f"language_model.path = {name!r}", remedy=remedy)


def _what_else(folder: Path, remedy: str) -> tuple[str, str]:
    """Return what a folder without a ``config.json`` is instead of a language model, and what to do."""
    snapshots = sorted(folder.glob("snapshots/*/config.json"))
    if (folder / "adapter_config.json").is_file():
        base = _adapter_base(folder)
        return (
            f"this folder holds an adapter of {base}, adapter_config.json, and not a language model",
            f"give the folder of {base}; or merge the two in Python: "
            "PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(...)",
        )
    if gguf := sorted(folder.glob("*.gguf")):
        return (
            f"this folder holds a model in the format of llama.cpp, {gguf[0].name}, and no config.json",
            "give the folder of the same model as safetensors: GGUF is not read",
        )
    if (folder / "params.json").is_file():
        return (
            "this folder holds a model as its makers published it, params.json, not as transformers saves it",
            "give the folder of the same model that was made for transformers",
        )
    if snapshots:
        return "this is a folder of the hub's cache, one above the model", f"give {snapshots[-1].parent}"
    if not any(folder.iterdir()):
        return "there is no language model: the folder is empty", remedy
    return "there is no language model: the folder has no config.json", remedy


def _adapter_base(folder: Path) -> str:
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return str(base.get("base_model_name_or_path") or "another model")
    except (ValueError, AttributeError):
        return "another model"


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Check that files of a model's folder are the files themselves; names may be patterns.

    Raises:
        UsageError: one is a pointer of git-lfs, or empty.
    """
    for file in sorted({file for name in names for file in folder.glob(name) if file.is_file()}):
        if file.stat().st_size > 1024:  # a pointer has about 130 bytes
            continue
        content = file.read_bytes()
        if content.startswith(POINTER):
            raise UsageError(
                f"{file.name} is a git-lfs pointer, not the file itself",
                where=file,
                remedy="run `git lfs pull` in the cloned folder, or fetch the model again: hf download",
            )
        if not content.strip() and file.name != "merges.txt":
            raise UsageError(f"{file.name} is empty", where=file, remedy=FETCH_AGAIN)


def require_tokenizer_files(folder: Path, path: str) -> None:
    """Check that a tokenizer is there.

    Raises:
        UsageError: there is none, or a pointer of git-lfs in its place.
    """
    if not any(file for kind in TOKENIZERS for file in folder.glob(kind)):
        raise UsageError(
            "the language model's folder has no tokenizer: none of " + ", ".join(TOKENIZERS),
            where=path,
            remedy="copy the tokenizer's files into it, from where the model is",
        )
    require_files(folder, (*TOKENIZERS, *TOKENIZER_SETTINGS, *TEMPLATES))


def require_safetensors(folder: Path, path: str) -> None:
    """Check that the weights of a model's folder are there and whole, in the one format that is read.

    Raises:
        UsageError: there are none, only pickles or GGUF, a shard is missing that the index names, or a file
            is a pointer of git-lfs, cut off or damaged.
    """
    from safetensors import SafetensorError, safe_open

    names = _named_weights(folder, path)
    require_files(folder, names)
    for name in names:
        try:
            with safe_open(folder / name, "pt"):  # reads the header, and compares it with the file's length
                pass
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"{name} is cut off or damaged: {error}", where=folder / name, remedy=FETCH_AGAIN
            ) from None


def _named_weights(folder: Path, path: str) -> list[str]:
    """Return the names of the files that hold the weights; see :func:`require_safetensors`."""
    index = folder / INDEX
    if index.is_file():
        require_files(folder, [INDEX])
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UsageError(f"{INDEX} cannot be read: {error}", where=index, remedy=FETCH_AGAIN) from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(names)} files of weights are missing, first {missing[0]}",
                where=path,
                remedy=FETCH_AGAIN,
            )
        return names
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if shards := sorted(file.name for file in folder.glob("model-*-of-*.safetensors")):
        raise UsageError(
            f"there are {len(shards)} files of weights, and {INDEX} is missing, which says what is in which",
            where=path,
            remedy=FETCH_AGAIN,
        )
    if (folder / "adapter_config.json").is_file():
        what, remedy = _what_else(folder, "")
        raise UsageError(what, where=path, remedy=remedy)
    pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind))
    if pickles:
        raise UsageError(
            f"the language model's weights are a pickle, {pickles[0]}, which may run any code",
            where=path,
            remedy="save it as safetensors where you trust it: "
            "AutoModel.from_pretrained(...).save_pretrained(...)",
        )
    others = sorted(file.name for kind in ("*.gguf", "*.safetensors") for file in folder.glob(kind))
    raise UsageError(
        f"the folder has no weights: no {WEIGHTS}" + (f", only {', '.join(others[:3])}" if others else ""),
        where=path,
        remedy="give a folder that transformers saved, weights in it, or fetch the model again",
    )
