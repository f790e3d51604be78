"""The prompt: the tokens before and after the sign words, and the tokens that end a translation.

They come from the defaults of the model's family or from the tokenizer's chat template. The paper does not
state a prompt; these are our choice, and options of
:class:`~signllm.models.language_model.language_model.LanguageModelConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any

from signllm.errors import UsageError
from signllm.languages import language_code, nearest_names
from signllm.models.language_model.chat_template import ChatTemplate, Thinking, select_template


@dataclass(frozen=True)
class Family:
    """The default prompt of a family of language models.

    Attributes:
        prompt: text before the sign words, with the placeholder ``{language}``.
        separator: text after the sign words.
        begins: whether the tokenizer's begin token, if there is one, precedes the prompt.
        translated: the prompt in other languages, by ISO 639-1 code; empty for families that learned tasks by
            English words or by language codes.
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
"""The prompt of causal models in the target languages of sign language datasets."""
CAUSAL = Family("Translate this sign language into {language}:", "\n", translated=TRANSLATED)
T5 = Family("translate sign language to {language}: ", "", begins=False)
"""T5 and Flan-T5 were trained with such task descriptions (arXiv 1910.10683, appendix D)."""
MULTILINGUAL = Family("", "", begins=False)
"""mBART, M2M100 and NLLB were trained with language codes and without descriptions (arXiv 2001.08210)."""
FAMILIES = {
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5", "switch_transformers"), T5),
    **dict.fromkeys(("mbart", "m2m_100", "bart", "nllb-moe"), MULTILINGUAL),
}


def find_family(model_type: str) -> Family:
    """Return the family of a ``transformers`` model type; all causal models share one."""
    return FAMILIES.get(model_type, CAUSAL)


class Prompt:
    """The token ids before and after the sign words, and the token ids that end a translation.

    The arguments are the options of
    :class:`~signllm.models.language_model.language_model.LanguageModelConfig`.

    Args:
        tokenizer: tokenizer of the model.
        family: family of the model.
        text: text before the sign words; None means the family's prompt.
        separator: text after the sign words; None means the family's separator.
        chat: whether to use a chat template; None means yes if the tokenizer has one.
        in_target: whether the family's prompt is in the target language, if the family has translations.
        chat_template: text, name or file of the chat template; None means the tokenizer's.
        day: date that the template reads as today, as in 2026-11-30; None means today.
        thinking: ``off`` (or None) disables the reasoning before an answer, ``template`` keeps the template's
            default.
        end_of_turn: text of the tokens that end a translation; an empty string means the tokenizer's end
            token, None means the end of an answer in the chat template.

    Raises:
        UsageError: ``chat`` is True and there is no chat template, or there are several and none is the
            default.
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
        chat_template: str | None = None,
        day: str | None = None,
        thinking: Thinking | None = None,
        end_of_turn: str | None = None,
    ) -> None:
        self.tokenizer, self.family = tokenizer, family
        self.translated = family.translated if in_target else {}
        self.text = family.prompt if text is None else text
        self.separator = family.separator if separator is None else separator
        has_template = bool(getattr(tokenizer, "chat_template", None) or chat_template)
        self.chat = has_template if chat is None else chat
        self.template: ChatTemplate | None = None
        if self.chat:
            self.template = ChatTemplate(
                tokenizer,
                select_template(tokenizer, chat_template),
                date.today() if day is None else date.fromisoformat(day),
                thinking or "off",
            )
        self._end_of_turn = end_of_turn
        self._context_by_language: dict[str, tuple[list[int], list[int]]] = {}

    @cached_property
    def _end_text(self) -> str:
        """Text of the tokens that end a translation; empty means the tokenizer's end token."""
        if self._end_of_turn is not None:
            return self._end_of_turn
        return self.template.end_of_turn() if self.template is not None else ""

    @cached_property
    def end(self) -> tuple[int, ...]:
        """The tokens that end every translation in training."""
        return tuple(self.tokens(self._end_text)) or (self.tokenizer.eos_token_id,)

    @property
    def ends(self) -> list[tuple[int, ...]]:
        """Sequences at which generation stops: the end used in training, and the tokenizer's end token."""
        return list(dict.fromkeys([self.end, (self.tokenizer.eos_token_id,)]))

    def recorded_settings(self) -> dict[str, Any]:
        """Return the values that options left at None have got, as fields of ``LanguageModelConfig``.

        They depend on the tokenizer's files and on the current date. A run records them, so that its prompt
        stays the same.
        """
        end = self._end_text or str(self.tokenizer.eos_token)
        recorded = {"chat": self.chat, "end_of_turn": end if tuple(self.tokens(end)) == self.end else ""}
        if self.template is not None:
            day = self.template.day.isoformat() if self.template.reads_date() else None
            thinking, text = self.template.thinking, self.template.text
            recorded |= {"chat_template": text, "date": day, "thinking": thinking}
        return recorded

    def context_tokens(self, language: str) -> tuple[list[int], list[int]]:
        """Return the tokens before and after the sign words of a video with target language ``language``.

        Raises:
            UsageError: the chat template fails or does not contain the user's message exactly once, or there
                is no prompt in that language.
        """
        if language not in self._context_by_language:
            self._context_by_language[language] = self._tokenize_context(self._prompt_for(language))
        return self._context_by_language[language]

    def _tokenize_context(self, text: str) -> tuple[list[int], list[int]]:
        if self.template is not None:
            before, after = self.template.context_text(text)
            return self.tokens(before), self.tokens(after)
        begin = self.tokenizer.bos_token_id if self.family.begins else None
        return [*([] if begin is None else [begin]), *self.tokens(text)], self.tokens(self.separator)

    def _prompt_for(self, language: str) -> str:
        """Return the prompt for a target language."""
        if not self.translated:
            return self.text.format(language=language)
        code = language_code(language)
        if code not in self.translated:
            raise UsageError(
                f"there is no prompt in the language {language!r}",
                where="language_model.prompt_language target: there are prompts in "
                + ", ".join(self.translated),
                remedy="set prompt_language to English, or give a prompt of your own"
                + "".join(f"; {name} has a similar name" for name in nearest_names(language, 1)),
            )
        return self.translated[code]

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a text, without the special tokens that the tokenizer would add."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
