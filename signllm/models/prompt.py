"""What surrounds the sign words: a family's prompt, or the chat template of a tokenizer.

Not stated in the paper; ours, and options of :class:`~signllm.models.language_model.LanguageModelConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from signllm.errors import UsageError

SIGNS = "<<signs>>"
"""Stands for the sign words while a chat template is filled in."""


@dataclass(frozen=True)
class Family:
    """How models of one family are used to being asked.

    Attributes:
        prompt: precedes the signs; ``{language}`` is a place to fill.
        separator: follows them.
        begins: its tokenizer's begin token comes first, where there is one.
    """

    prompt: str
    separator: str
    begins: bool = True


CAUSAL = Family("Translate this sign language into {language}:", "\n")
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

    Raises:
        UsageError: a chat template is asked for and there is none.
    """

    def __init__(
        self, tokenizer: Any, family: Family, *, text: str | None, separator: str | None, chat: bool | None
    ) -> None:
        self.tokenizer, self.family = tokenizer, family
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
            UsageError: the chat template does not show what the user says.
        """
        text = self.text.format(language=language)
        if self.chat:
            return self._in_template(text)
        begin = self.tokenizer.bos_token_id if self.family.begins else None
        return [*([] if begin is None else [begin]), *self.tokens(text)], self.tokens(self.separator)

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
