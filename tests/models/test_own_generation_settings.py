"""Generation settings in a model's folder have no effect; only our options count."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from signllm.models.language_model.builder import build_language_model
from signllm.models.language_model.generation import GenerationConfig
from signllm.models.language_model.language_model import LanguageModelConfig, LoraConfig
from tests.models.families import save_family

COUNTS = torch.tensor([3, 1])
LANGUAGES = ["German", "German"]
HOSTILE: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 1000.0, "encoder_repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
    "lengths": {"min_new_tokens": 8, "min_length": 9, "max_length": 3, "max_new_tokens": 2, "max_time": 1e-9},
    "forced tokens": {"forced_bos_token_id": 9, "forced_eos_token_id": 8, "eos_token_id": [5, 6, 7, 8, 9]},
    "suppressed": {
        "suppress_tokens": [4, 5, 6, 7, 8],
        "begin_suppress_tokens": [9, 10],
        "bad_words_ids": [[11], [12]],
    },
    "biases": {"sequence_bias": [[[7], 100.0]], "exponential_decay_length_penalty": [1, 9.0]},
    "sampling": {
        "do_sample": True,
        "temperature": 9.0,
        "top_k": 2,
        "top_p": 0.3,
        "typical_p": 0.5,
        "min_p": 0.2,
    },
    "search": {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True, "length_penalty": -9.0},
    "caches": {"cache_implementation": "static", "use_cache": False},
    "outputs": {"output_scores": True, "output_hidden_states": True, "output_attentions": True}
    | {"return_dict_in_generate": True},
    "starts": {"decoder_start_token_id": 7, "bos_token_id": 7, "pad_token_id": 6},
    "stops": {"stop_strings": ["sun", "rain", "e"], "prompt_lookup_num_tokens": 3, "guidance_scale": 3.0},
}
DECODINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"beams": 3, "n_best": 2},
    "drawn": {"temperature": 1.5, "n_best": 2},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("llama", "gpt2", "t5", "mbart50", "mbart")
    return {name: save_family(tmp_path_factory.mktemp(name), name) for name in names}


@pytest.fixture
def words() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 16)


def written(folder: Path, words: torch.Tensor, *, alone: bool = False, **changes: Any) -> dict[str, Any]:
    """Return the texts of both videos by decoding; ``alone``: check that each is the same without."""
    model = build_language_model(LanguageModelConfig(**{"path": str(folder), "dtype": "fp32"} | changes))
    texts = {}
    for name, decoding in DECODINGS.items():
        settings = GenerationConfig(max_new_tokens=6, **decoding)
        together = model.generate_candidates(words, COUNTS, LANGUAGES, settings, [1, 2])
        texts[name] = [[one.text for one in candidates] for candidates in together]
        for place, part in enumerate(words.split(COUNTS.tolist()) if alone else ()):
            (candidates,) = model.generate_candidates(
                part, torch.tensor([len(part)]), ["German"], settings, [1 + place]
            )
            assert [one.text for one in candidates] == texts[name][place]
    return texts


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_no_setting_in_the_folder_changes_a_text(
    folders: dict[str, Path], words: torch.Tensor, name: str, tmp_path: Path
) -> None:
    plain = written(folders[name], words)
    assert any(any(texts) for texts in plain["greedy"])
    folder = Path(shutil.copytree(folders[name], tmp_path / "model"))
    for hostile in HOSTILE.values():
        (folder / "generation_config.json").write_text(json.dumps(hostile))
        assert written(folder, words) == plain, hostile


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "mbart50", "mbart"])
def test_all_settings_together_change_no_text_alone_or_in_a_batch(
    folders: dict[str, Path], words: torch.Tensor, name: str, tmp_path: Path
) -> None:
    plain = written(folders[name], words)
    folder = Path(shutil.copytree(folders[name], tmp_path / "model"))
    everything = {key: value for group in HOSTILE.values() for key, value in group.items()}
    (folder / "generation_config.json").write_text(json.dumps(everything))
    assert written(folder, words, alone=True) == plain
    (folder / "generation_config.json").write_text("{ not json")
    assert written(folder, words) == plain


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_settings_in_config_json_change_no_text(
    folders: dict[str, Path], words: torch.Tensor, name: str, tmp_path: Path
) -> None:
    """Older models have their generation settings in config.json."""
    plain = written(folders[name], words)
    folder = Path(shutil.copytree(folders[name], tmp_path / "model"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    older = {"repetition_penalty": 50.0, "min_length": 8, "num_beams": 4, "no_repeat_ngram_size": 1}
    older |= {
        "do_sample": True,
        "bad_words_ids": [[5], [6]],
        "output_hidden_states": True,
        "return_dict": False,
    }
    (folder / "config.json").write_text(json.dumps(config | older))
    assert written(folder, words) == plain


def test_adapters_do_not_bring_them_back(
    folders: dict[str, Path], words: torch.Tensor, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "model"))
    (folder / "generation_config.json").write_text(
        json.dumps({"repetition_penalty": 1000.0, "min_length": 9})
    )
    assert written(folder, words, lora=LoraConfig(rank=2)) == written(folders["llama"], words)


def test_a_text_is_read_as_its_tokens_say_whatever_the_tokenizer_cleans_up(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "llama")
    message = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(message | {"clean_up_tokenization_spaces": True})
    )
    model = build_language_model(LanguageModelConfig(path=str(folder), dtype="fp32"))
    assert model.tokenizer.clean_up_tokenization_spaces
    tokens = model.prompt.tokens("sun : rain")
    decoded = model.tokenizer.batch_decode([tokens], clean_up_tokenization_spaces=False)
    assert decoded == ["sun : rain"]
