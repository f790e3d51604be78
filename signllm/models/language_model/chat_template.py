"""Chat templates: the text that a template puts before and after the sign words, and how it ends an answer.

A chat template is a Jinja program that comes with a model. It may print today's date, open a reasoning
section before the answer, end an answer with another token than the tokenizer's end token, or fail. This
module finds out by rendering the template;
:class:`~signllm.models.language_model.language_model.LanguageModelConfig` records the results for a run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from signllm.errors import UsageError

Thinking = Literal["off", "template"]
SIGNS, ANSWER, QUESTION = "904173628504", "815264937162", "726153948271"
"""Placeholders for the sign words, an answer and a next question while a template is rendered.

They are digits, because a template may trim, escape or lower-case other text.
"""
REASONING_TAG = re.compile(
    r"(?P<open>(?:<\|?|\[|◁)(?!END_)(?:START_)?(?:[\w:]*think(?:ing)?|thought|reasoning)(?:\|?>|\]|▷))",
    re.IGNORECASE,
)
"""A tag that opens a reasoning section: ``<think>``, ``<seed:think>``, ``[THINK]``,
``<|START_THINKING|>``."""
NO_THINKING = {"enable_thinking": False, "thinking": False}
"""Variables that disable reasoning: the first in templates of Qwen3, GLM-4.5 and SmolLM3, the second in those
of DeepSeek-V3.1 and Granite."""
WITHOUT_CHAT = "give --sign-llm.language-model.chat False, which uses a prompt without a chat template"


def select_template(tokenizer: Any, choice: str | None) -> str:
    """Return the text of a chat template.

    Args:
        tokenizer: tokenizer with one template, several named ones, or none.
        choice: text of a template, name of one of the tokenizer's templates, or a file; None means the
            tokenizer's only template, or the one named ``default``.

    Raises:
        UsageError: there is no template, none of that name, or there are several and none is the default.
    """
    own = getattr(tokenizer, "chat_template", None)
    named = own if isinstance(own, dict) else {} if own is None else {"default": own}
    if choice is None:
        if not named:
            raise UsageError(
                "the tokenizer has no chat template",
                where="language_model.chat",
                remedy="leave out the option chat",
            )
        if "default" in named or len(named) == 1:
            return str(named.get("default", next(iter(named.values()))))
        raise UsageError(
            f"the tokenizer has {len(named)} chat templates, {', '.join(sorted(named))}, and no default",
            where="language_model.chat_template",
            remedy=f"name one: --sign-llm.language-model.chat-template {min(named)}; or {WITHOUT_CHAT}",
        )
    if "{" in choice:
        return choice
    if choice in named:
        return str(named[choice])
    if Path(choice).is_file():
        return Path(choice).read_text(encoding="utf-8")
    raise UsageError(
        f"there is no chat template {choice!r}: it is neither a name in the tokenizer nor a file",
        where="language_model.chat_template",
        remedy=f"give one of {', '.join(sorted(named))}" if named else "give a file, or leave it out",
    )


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with everything that its output depends on.

    Attributes:
        tokenizer: its special tokens are variables of the template.
        text: Jinja source of the template.
        day: date that the template reads as today.
        thinking: ``off`` asks the template for no reasoning and closes a reasoning section that it opens all
            the same, so that the answer follows; ``template`` keeps the template's default.
    """

    tokenizer: Any
    text: str
    day: date
    thinking: Thinking = "off"

    def context_text(self, prompt: str) -> tuple[str, str]:
        """Return the texts before and after the sign words in a message of ``prompt`` and sign words.

        Raises:
            UsageError: the template fails, or does not contain the user's message exactly once.
        """
        asked = self._render([self._turn("user", f"{prompt} {SIGNS}")], answers=True)
        before, match, after = asked.partition(SIGNS)
        if not match or SIGNS in after:
            raise UsageError(
                "the chat template leaves out the user's message"
                if not match
                else "the chat template repeats the user's message",
                where="language_model.chat",
                remedy=WITHOUT_CHAT,
            )
        if self.thinking == "off":
            after += self._find_lead_in(prompt, asked)
            after += close_reasoning(after)
        return before, after

    def end_of_turn(self) -> str:
        """Return the text with which the template ends an answer: a special token, or a line of text.

        The text has no whitespace at its ends. It is empty if the template ends an answer with nothing; then
        the tokenizer's end token has to end it.
        """
        user, answer = self._turn("user", SIGNS), self._turn("assistant", ANSWER)
        try:
            before, _, after = self._render([user, answer], answers=False).partition(ANSWER)
            if after.strip():
                end = self._first_end(after)
                # A template that always opens another answer ends with the text that precedes an answer.
                return "" if before.rstrip().endswith(end) else end
            # Some templates end an answer only if another turn follows.
            rendered = self._render([user, answer, self._turn("user", QUESTION)], answers=False)
        except UsageError:  # the template supports one question without an answer only
            return ""
        between = rendered.partition(ANSWER)[2].partition(QUESTION)[0].strip()
        begins_turn = rendered.partition(SIGNS)[0].rstrip().endswith(between)
        return "" if begins_turn else self._first_end(between, is_special=True)

    def reads_date(self) -> bool:
        """Return whether the prompt depends on the date."""
        turns = [self._turn("user", SIGNS)]
        days = (date(2001, 2, 3), date(2022, 11, 25))
        first, second = (self._render(turns, answers=True, day=day) for day in days)
        return first != second

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template expects a message as a list of parts, as those of multimodal models do."""
        for has_parts in (False, True):
            content: Any = [{"type": "text", "text": SIGNS}] if has_parts else SIGNS
            try:
                rendered = self._render([{"role": "user", "content": content}], answers=True)
            except UsageError:
                continue
            if SIGNS in rendered:
                return has_parts
        return False

    def _turn(self, role: str, content: str) -> dict[str, Any]:
        """Return a message of the conversation in the form that the template expects."""
        return {
            "role": role,
            "content": [{"type": "text", "text": content}] if self._reads_parts else content,
        }

    def _render(self, turns: list[dict[str, Any]], *, answers: bool, day: date | None = None) -> str:
        """Render the template.

        Args:
            turns: messages of the conversation.
            answers: whether to append the text that precedes an answer.
            day: date that the template reads as today, by default that of this template.

        Raises:
            UsageError: the template fails.
        """
        # apply_chat_template() always passes the current date to a template. Therefore this calls the
        # sandbox in which it runs templates.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        midnight = datetime.combine(day or self.day, datetime.min.time())
        try:
            rendered = _compile_jinja_template(self.text).render(
                **self.tokenizer.special_tokens_map,
                **(NO_THINKING if self.thinking == "off" else {}),
                messages=turns,
                tools=None,
                documents=None,
                add_generation_prompt=answers,
                strftime_now=lambda form: midnight.strftime(form),
            )
        except Exception as error:  # the template is a foreign program: it may raise any exception
            first_line = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"the chat template fails with {type(error).__name__}: {first_line}",
                where="language_model.chat",
                remedy=WITHOUT_CHAT,
            ) from None
        return str(rendered)

    def _find_lead_in(self, prompt: str, asked: str) -> str:
        """Return the text that the template puts between a prompt and an answer, such as a channel's name."""
        turns = [self._turn("user", f"{prompt} {SIGNS}"), self._turn("assistant", ANSWER)]
        try:
            rendered = self._render(turns, answers=False)
        except UsageError:
            return ""
        before, match, _ = rendered.partition(ANSWER)
        lead = before.removeprefix(asked) if before.startswith(asked) else ""
        return lead if match and lead.strip() else ""

    def _first_end(self, text: str, *, is_special: bool = False) -> str:
        """Return the text that ends an answer, from the text that follows the answer in the template.

        It is the first line up to the first special token, or that token if it begins the line. If
        ``is_special``, it is the first special token of the line.
        """
        lines = text.strip().splitlines()
        if not lines:
            return ""
        line = lines[0].strip()
        special = {str(token) for token in self.tokenizer.get_added_vocab()} | set(
            self.tokenizer.all_special_tokens
        )
        places = {token: line.find(token) for token in special if token and token in line}
        if not places:
            return "" if is_special else self._text_if_known(line)
        first = min(places, key=lambda token: (places[token], -len(token)))
        if places[first] == 0 or is_special:
            return first
        return self._text_if_known(line[: places[first]].strip())

    def _text_if_known(self, text: str) -> str:
        """Return ``text``, or an empty string if the tokenizer has unknown tokens for it."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return "" if not ids or self.tokenizer.unk_token_id in ids else text


def close_reasoning(text: str) -> str:
    """Return the text that closes a reasoning section which ``text`` leaves open; empty if it leaves none."""
    opened = list(REASONING_TAG.finditer(text))
    if not opened:
        return ""
    tag = opened[-1]["open"]
    closing = (
        re.sub("START_", "END_", tag, flags=re.IGNORECASE)
        if "START_" in tag.upper()
        else re.sub(r"^(<\|?|\[|◁)", r"\1/", tag)
    )
    rest = text[opened[-1].end() :]
    if closing in rest:
        return ""
    # An empty section as Qwen3 writes it: <think>, an empty line, </think>, an empty line.
    return ("\n" if rest.endswith("\n") else "\n\n") + closing + "\n\n"
