"""Languages by name, as datasets call them, and as the codes of multilingual models."""

from __future__ import annotations

from typing import Any

from signllm.errors import UsageError

CODES = {
    "afrikaans": "af", "arabic": "ar", "azerbaijani": "az", "bengali": "bn", "burmese": "my",
    "chinese": "zh", "croatian": "hr", "czech": "cs", "dutch": "nl", "english": "en", "estonian": "et",
    "finnish": "fi", "french": "fr", "galician": "gl", "georgian": "ka", "german": "de", "gujarati": "gu",
    "hebrew": "he", "hindi": "hi", "indonesian": "id", "italian": "it", "japanese": "ja", "kazakh": "kk",
    "khmer": "km", "korean": "ko", "latvian": "lv", "lithuanian": "lt", "macedonian": "mk",
    "malayalam": "ml", "marathi": "mr", "mongolian": "mn", "nepali": "ne", "pashto": "ps", "persian": "fa",
    "polish": "pl", "portuguese": "pt", "romanian": "ro", "russian": "ru", "sinhala": "si", "slovene": "sl",
    "spanish": "es", "swahili": "sw", "swedish": "sv", "tagalog": "tl", "tamil": "ta", "telugu": "te",
    "thai": "th", "turkish": "tr", "ukrainian": "uk", "urdu": "ur", "vietnamese": "vi", "xhosa": "xh",
}  # fmt: skip
"""ISO 639-1 codes of the languages of mBART-50 (arXiv 2008.00401, appendix A)."""


def code_of(language: str) -> str:
    """Return the ISO 639-1 code of a language by its English name or a code: German, ``de``, ``de_DE``."""
    first = language.lower().replace("_", "-").split("-")[0]
    return CODES.get(first, first)


def decoder_start(tokenizer: Any, config: Any, language: str) -> list[int]:
    """Return the tokens that a decoder begins with, in a model's configuration and for a language.

    A model that knows languages by codes (``de_DE``, ``__de__``) starts with the language's, behind the end
    token where its configuration makes that its decoder's start (mBART-50, M2M100); others (T5) with the
    start token of the configuration.

    Raises:
        UsageError: the model has language codes, and none for this language.
    """
    start = config.decoder_start_token_id
    codes = [token for token in tokenizer.all_special_tokens if is_code(token)]
    if not codes:
        return [config.pad_token_id if start is None else start]
    wanted = code_of(language)
    found = [token for token in codes if token.strip("_").split("_")[0] == wanted]
    if not found:
        raise UsageError(
            f"this model has no code for the language {language!r}",
            where=f"its {len(codes)} codes are {', '.join(codes[:4])} ...",
            remedy="name the language in the annotations as in English, or by its ISO 639-1 code",
        )
    code = tokenizer.convert_tokens_to_ids(found[0])
    return [start, code] if start == tokenizer.eos_token_id else [code]


def is_code(token: str) -> bool:
    """Say whether a special token is a language's code: ``de_DE``, ``__de__``."""
    name = token.strip("_")
    language, _, region = name.partition("_")
    return (
        token != name.replace("_", "")
        and 2 <= len(language) <= 3
        and language.isalpha()
        and (region.isalpha() or token == f"__{name}__")
    )
