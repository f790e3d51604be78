"""What surrounds the sign words: a family's prompt, or the chat template of a tokenizer.

Not stated in the paper; ours, and options of :class:`~signllm.models.language_model.LanguageModelConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from signllm.errors import UsageError
from signllm.languages import language_code

SIGNS = "<<signs>>"
"""Stands for the sign words while a chat template is filled in."""


@dataclass(frozen=True)
class Family:
    """How models of one family are used to being asked.

    Attributes:
        prompt: precedes the signs; ``{language}`` is a place to fill.
        separator: follows them.
        begins: its tokenizer's begin token comes first, where there is one.
        translated: the prompt in other languages, by their ISO 639-1 codes; empty where the family learnt its
            tasks by English words, or by codes.
    """

    prompt: str
    separator: str
    begins: bool = True
    translated: Mapping[str, str] = field(default_factory=dict)


TRANSLATED = {
    "ar": "ترجم لغة الإشارة هذه إلى العربية:",
    "de": "Übersetze diese Gebärdensprache ins Deutsche:",
    "en": "Translate this sign language into English:",
    "es": "Traduce esta lengua de signos al español:",
    "fr": "Traduis cette langue des signes en français :",
    "it": "Traduci questa lingua dei segni in italiano:",
    "ja": "この手話を日本語に翻訳してください：",
    "ko": "이 수어를 한국어로 번역하세요:",
    "nl": "Vertaal deze gebarentaal naar het Nederlands:",
    "pt": "Traduza esta língua de sinais para o português:",
    "ru": "Переведи этот жестовый язык на русский:",
    "tr": "Bu işaret dilini Türkçeye çevir:",
    "zh": "将这段手语翻译成中文：",
}
"""The prompt of causal models in the languages that sign language datasets are translated into."""
CAUSAL = Family("Translate this sign language into {language}:", "\n", translated=TRANSLATED)
T5 = Family("translate sign language to {language}: ", "", begins=False)
"""T5 and Flan-T5 learnt tasks by such words (arXiv 1910.10683, appendix D)."""
MULTILINGUAL = Family("", "", begins=False)
"""mBART, M2M100 and NLLB were told languages by codes, never anything in words (arXiv 2001.08210)."""
FAMILIES = {
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5", "switch_transformers"), T5),
    **dict.fromkeys(("mbart", "m2m_100", "bart", "nllb-moe"), MULTILINGUAL),
}


def family_of(model_type: str) -> Family:
    """Return the family of a ``transformers`` model type; causal models share one."""
    return FAMILIES.get(model_type, CAUSAL)


class Prompt:
    """Token ids before and behind the sign words.

    Args:
        tokenizer: of the model.
        family: of the model.
        text: instead of the family's prompt, if given.
        separator: instead of the family's, if given.
        chat: through the tokenizer's chat template; None: where it has one.
        in_target: the family's prompt is in the language that is asked for, where the family has it so.

    Raises:
        UsageError: a chat template is asked for and there is none.
    """

    def __init__(
        self,
        tokenizer: Any,
        family: Family,
        *,
        text: str | None,
        separator: str | None,
        chat: bool | None,
        in_target: bool = False,
    ) -> None:
        self.tokenizer, self.family = tokenizer, family
        self.translated = family.translated if in_target else {}
        self.text = family.prompt if text is None else text
        self.separator = family.separator if separator is None else separator
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if chat and not has_template:
            raise UsageError(
                "the tokenizer has no chat template", where="language_model.chat", remedy="leave it out"
            )
        self.chat = has_template if chat is None else chat

    def around(self, language: str) -> tuple[list[int], list[int]]:
        """Return the tokens before and behind the signs of a video in ``language``.

        Raises:
            UsageError: the chat template does not show what the user says, or there is no prompt in that
                language.
        """
        text = self._in_language(language)
        if self.chat:
            return self._in_template(text)
        begin = self.tokenizer.bos_token_id if self.family.begins else None
        return [*([] if begin is None else [begin]), *self.tokens(text)], self.tokens(self.separator)

    def _in_language(self, language: str) -> str:
        if not self.translated:
            return self.text.format(language=language)
        code = language_code(language)
        if code not in self.translated:
            raise UsageError(
                f"there is no prompt in the language {language!r}",
                where=f"language_model.prompt_language target: it is there in {', '.join(self.translated)}",
                remedy="give prompt_language English, or a prompt of your own",
            )
        return self.translated[code]

    def _in_template(self, text: str) -> tuple[list[int], list[int]]:
        said = [{"role": "user", "content": f"{text} {SIGNS}"}]
        filled = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        before, found, behind = filled.partition(SIGNS)
        if not found:
            raise UsageError(
                "the chat template leaves out what the user says",
                where="language_model.chat",
                remedy="set language_model.chat to False",
            )
        return self.tokens(before), self.tokens(behind)

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text, without any special token around them."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
