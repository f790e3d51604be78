"""Finding a language model's folder, and checking that its files are present and complete.

Users give folders that were cloned without git-lfs, copied in part, or contain something else than a model.
These are refused here, with the name of the file and a remedy, before anything is loaded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from signllm.errors import UsageError

TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
"""Files with the vocabulary of a tokenizer; without one of them there is no tokenizer."""
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
TEMPLATES = ("chat_template.*", "additional_chat_templates/*")
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
LFS_POINTER = b"version https://git-lfs"
"""First bytes of the small pointer file that git leaves in place of a large file without git-lfs."""
FETCH_AGAIN = "download or copy the complete model again"


def model_folder(name: str) -> Path:
    """Return the folder of a language model: ``name`` itself, or its copy in the cache of the hub.

    Nothing is downloaded, because compute nodes often have no network and a thousand ranks should not
    download.

    Raises:
        UsageError: ``name`` is neither a folder with a model nor a model in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if (Path(name) / "config.json").is_file():
        return Path(name)
    remedy = "give the folder of a language model with its weights and tokenizer"
    if name and not Path(name).exists() and name.count("/") <= 1:
        remedy += f", or download it from the hub first: hf download {name}"
        with contextlib.suppress(LocalEntryNotFoundError, HFValidationError):
            cached = Path(snapshot_download(name, local_files_only=True))
            if (cached / "config.json").is_file():
                return cached
    what = "there is no language model" if name else "no language model is given"
    if name and Path(name).is_dir():
        what, remedy = _describe_folder(Path(name), remedy)
    raise UsageError(what, where=f"language_model.path = {name!r}", remedy=remedy)


def _describe_folder(folder: Path, remedy: str) -> tuple[str, str]:
    """Return what a folder without a ``config.json`` contains instead of a language model, and a remedy."""
    snapshots = sorted(folder.glob("snapshots/*/config.json"))
    if (folder / "adapter_config.json").is_file():
        base = _adapter_base(folder)
        return (
            f"this folder contains an adapter of {base} (adapter_config.json), not a language model",
            f"give the folder of {base}, or merge the two in Python: "
            "PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(...)",
        )
    if gguf := sorted(folder.glob("*.gguf")):
        return (
            f"this folder contains a model in the format of llama.cpp, {gguf[0].name}, and no config.json",
            "give the folder of the same model as safetensors; GGUF files are not supported",
        )
    if (folder / "params.json").is_file():
        return (
            "this folder contains a model in the format of its authors (params.json), not of transformers",
            "give the folder of the same model in the format of transformers",
        )
    if snapshots:
        return (
            "this folder of the hub's cache is not the model's folder itself",
            f"give {snapshots[-1].parent}",
        )
    if not any(folder.iterdir()):
        return "there is no language model: the folder is empty", remedy
    return "there is no language model: the folder has no config.json", remedy


def _adapter_base(folder: Path) -> str:
    """Return the name of the model that an adapter was trained for."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return str(base.get("base_model_name_or_path") or "another model")
    except (ValueError, AttributeError):
        return "another model"


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Check that the files of a model's folder are not empty and not pointers of git-lfs.

    Args:
        folder: folder of the model.
        names: names of files, or patterns; files that do not exist are ignored.

    Raises:
        UsageError: a file is a pointer of git-lfs, or empty.
    """
    for file in sorted({file for name in names for file in folder.glob(name) if file.is_file()}):
        if file.stat().st_size > 1024:  # a pointer has about 130 bytes
            continue
        content = file.read_bytes()
        if content.startswith(LFS_POINTER):
            raise UsageError(
                f"{file.name} is a git-lfs pointer, not the file itself",
                where=file,
                remedy="run `git lfs pull` in the cloned folder, or download the model again: hf download",
            )
        if not content.strip() and file.name != "merges.txt":
            raise UsageError(f"{file.name} is empty", where=file, remedy=FETCH_AGAIN)


def require_tokenizer_files(folder: Path, path: str) -> None:
    """Check that a model's folder contains a tokenizer; ``path`` is the folder as the user gave it.

    Raises:
        UsageError: there is no tokenizer, or a pointer of git-lfs in its place.
    """
    if not any(file for kind in TOKENIZERS for file in folder.glob(kind)):
        raise UsageError(
            "the folder of the language model has no tokenizer, which is one of " + ", ".join(TOKENIZERS),
            where=path,
            remedy="copy the files of the tokenizer from the original model into the folder",
        )
    require_files(folder, (*TOKENIZERS, *TOKENIZER_SETTINGS, *TEMPLATES))


def require_safetensors(folder: Path, path: str) -> None:
    """Check that a model's folder contains its complete weights as safetensors.

    ``path`` is the folder as the user gave it.

    Raises:
        UsageError: there are no weights, only pickles or GGUF files, a file in the index is missing, or a
            file is a pointer of git-lfs, truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    names = _named_weights(folder, path)
    require_files(folder, names)
    for name in names:
        try:
            with safe_open(
                folder / name, "pt"
            ):  # reads the header and compares it with the length of the file
                pass
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"{name} is truncated or damaged: {error}", where=folder / name, remedy=FETCH_AGAIN
            ) from None


def _named_weights(folder: Path, path: str) -> list[str]:
    """Return the names of the files with the weights; see :func:`require_safetensors`."""
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
                f"{len(missing)} of {len(names)} weight files are missing; the first is {missing[0]}",
                where=path,
                remedy=FETCH_AGAIN,
            )
        return names
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if shards := sorted(file.name for file in folder.glob("model-*-of-*.safetensors")):
        raise UsageError(
            f"there are {len(shards)} weight files, but {INDEX} is missing, the index of their tensors",
            where=path,
            remedy=FETCH_AGAIN,
        )
    if (folder / "adapter_config.json").is_file():
        what, remedy = _describe_folder(folder, "")
        raise UsageError(what, where=path, remedy=remedy)
    pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind))
    if pickles:
        raise UsageError(
            f"the weights of the language model are a pickle, {pickles[0]}, which can run any code",
            where=path,
            remedy="if you trust the file, save the model as safetensors: "
            "AutoModel.from_pretrained(...).save_pretrained(...)",
        )
    others = sorted(file.name for kind in ("*.gguf", "*.safetensors") for file in folder.glob(kind))
    raise UsageError(
        f"the folder has no weights: no {WEIGHTS}" + (f", only {', '.join(others[:3])}" if others else ""),
        where=path,
        remedy="give a folder with weights that transformers saved, or download the model again",
    )
