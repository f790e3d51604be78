"""What surrounds the sign words, and what ends a text: of a family, or of a tokenizer's chat template.

Not stated in the paper; ours, and options of :class:`~signllm.models.language_model.LanguageModelConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any

from signllm.errors import UsageError
from signllm.languages import language_code, nearest_names
from signllm.models.chat_template import ChatTemplate, Thinking, select_template


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


def find_family(model_type: str) -> Family:
    """Return the family of a ``transformers`` model type; causal models share one."""
    return FAMILIES.get(model_type, CAUSAL)


class Prompt:
    """Token ids before and after the sign words, and those that end a text.

    Args:
        tokenizer: of the model.
        family: of the model.
        text: instead of the family's prompt, if given.
        separator: instead of the family's, if given.
        chat: through the tokenizer's chat template; None: where it has one.
        in_target: the family's prompt is in the language that is asked for, where the family has it so.
        chat_template: its text, or name; None: the tokenizer's.
        day: what the template reads as today, as in 2026-11-30; None: today.
        thinking: ``off`` lets no model think before it answers; None is ``off``.
        end_of_turn: text of the tokens that end a text; empty: the tokenizer's end token; None: that with
            which the chat template ends an answer.

    Raises:
        UsageError: a chat template is asked for and there is none, or it cannot be chosen.
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
        self._around: dict[str, tuple[list[int], list[int]]] = {}

    @cached_property
    def _end_text(self) -> str:
        """The text of the tokens that end every text; empty: the tokenizer's end token."""
        if self._end_of_turn is not None:
            return self._end_of_turn
        return self.template.end_of_turn() if self.template is not None else ""

    @cached_property
    def end(self) -> tuple[int, ...]:
        """The tokens that end every text."""
        return tuple(self.tokens(self._end_text)) or (self.tokenizer.eos_token_id,)

    @property
    def ends(self) -> list[tuple[int, ...]]:
        """What writing stops at: the end of a text in training, and the tokenizer's own end token."""
        return list(dict.fromkeys([self.end, (self.tokenizer.eos_token_id,)]))

    def recorded_settings(self) -> dict[str, Any]:
        """Return what the tokenizer's files and the day decided, as fields of ``LanguageModelConfig``."""
        end = self._end_text or str(self.tokenizer.eos_token)
        decided = {"chat": self.chat, "end_of_turn": end if tuple(self.tokens(end)) == self.end else ""}
        if self.template is not None:
            day = self.template.day.isoformat() if self.template.reads_date() else None
            thinking, text = self.template.thinking, self.template.text
            decided |= {"chat_template": text, "date": day, "thinking": thinking}
        return decided

    def context_tokens(self, language: str) -> tuple[list[int], list[int]]:
        """Return the tokens before and after the signs of a video in ``language``.

        Raises:
            UsageError: the chat template raises or does not show what the user says, or there is no prompt in
            that language.
        """
        if language not in self._around:
            self._around[language] = self._tokens_around(self._in_language(language))
        return self._around[language]

    def _tokens_around(self, text: str) -> tuple[list[int], list[int]]:
        if self.template is not None:
            before, after = self.template.context_text(text)
            return self.tokens(before), self.tokens(after)
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
                remedy="give prompt_language English, or a prompt of your own"
                + "".join(f"; {name} is spelled like it" for name in nearest_names(language, 1)),
            )
        return self.translated[code]

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text, without any special token around them."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
