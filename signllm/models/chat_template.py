"""What a chat template puts around the signs, and the token with which it ends an answer.

A template is a program that came with the model. It may read today's date, think before it answers, end a
turn with another token than the tokenizer's end token, or fail. All that is settled here, from the template's
own output; :class:`~signllm.models.language_model.LanguageModelConfig` records it for the run.
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
"""Stand for the sign words, an answer and a next question while a template is filled in.

Digits are what no template changes: it may trim, escape or lower what it is given.
"""
THOUGHT = re.compile(
    r"(?P<open>(?:<\|?|\[|◁)(?!END_)(?:START_)?(?:[\w:]*think(?:ing)?|thought|reasoning)(?:\|?>|\]|▷))",
    re.IGNORECASE,
)
"""A tag that opens a thought: ``<think>``, ``<seed:think>``, ``[THINK]``, ``<|START_THINKING|>``."""
NO_THINKING = {"enable_thinking": False, "thinking": False}
"""Names by which templates are asked not to think: Qwen3, GLM-4.5 and SmolLM3; DeepSeek-V3.1 and Granite."""
WITHOUT_CHAT = "give --sign-llm.language-model.chat False, which prompts the model without its template"


def select_template(tokenizer: Any, choice: str | None) -> str:
    """Return the text of a chat template.

    Args:
        tokenizer: has one template, several by their names, or none.
        choice: the text of a template, the name of one of the tokenizer's, or a file; None: the tokenizer's
            only one, or that called ``default``.

    Raises:
        UsageError: there is none, there are several and none is the default, or no such template.
    """
    own = getattr(tokenizer, "chat_template", None)
    named = own if isinstance(own, dict) else {} if own is None else {"default": own}
    if choice is None:
        if not named:
            raise UsageError(
                "the tokenizer has no chat template", where="language_model.chat", remedy="leave it out"
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
        f"there is no chat template {choice!r}: neither of the tokenizer nor a file",
        where="language_model.chat_template",
        remedy=f"give one of {', '.join(sorted(named))}" if named else "give a file, or leave it out",
    )


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template of a tokenizer, with all that its output depends on.

    Attributes:
        tokenizer: knows which texts are special tokens.
        text: Jinja source of the template.
        day: what the template reads as today.
        thinking: ``off`` asks the template not to think and closes a thought that it opens by itself, so
            that the answer follows; ``template`` leaves the template its own default.
    """

    tokenizer: Any
    text: str
    day: date
    thinking: Thinking = "off"

    def context_text(self, prompt: str) -> tuple[str, str]:
        """Return the texts before and after the signs when a user says ``prompt`` and the signs.

        Raises:
            UsageError: the template raises, or does not show what the user says exactly once.
        """
        asked = self._render([self._turn("user", f"{prompt} {SIGNS}")], answers=True)
        before, found, after = asked.partition(SIGNS)
        if not found or SIGNS in after:
            raise UsageError(
                "the chat template leaves out what the user says"
                if not found
                else "the chat template repeats what the user says",
                where="language_model.chat",
                remedy=WITHOUT_CHAT,
            )
        if self.thinking == "off":
            after += self._lead_in(prompt, asked)
            after += closing_of_thought(after)
        return before, after

    def end_of_turn(self) -> str:
        """Return the text with which the template ends an answer: a special token, or a line.

        Whitespace around it does not belong to it. Empty: nothing follows an answer that ends it, and the
        tokenizer's end token has to.
        """
        user, answer = self._turn("user", SIGNS), self._turn("assistant", ANSWER)
        try:
            before, _, after = self._render([user, answer], answers=False).partition(ANSWER)
            if after.strip():
                end = self._first_end(after)
                # A template that always asks for another answer ends with what precedes an answer.
                return "" if before.rstrip().endswith(end) else end
            # Some templates end an answer only where another turn follows.
            rendered = self._render([user, answer, self._turn("user", QUESTION)], answers=False)
        except UsageError:  # a template for one question and no answers
            return ""
        between = rendered.partition(ANSWER)[2].partition(QUESTION)[0].strip()
        begins_turn = rendered.partition(SIGNS)[0].rstrip().endswith(between)
        return "" if begins_turn else self._first_end(between, is_special=True)

    def reads_date(self) -> bool:
        """Return whether the prompt differs from day to day."""
        turns = [self._turn("user", SIGNS)]
        days = (date(2001, 2, 3), date(2022, 11, 25))
        first, second = (self._render(turns, answers=True, day=day) for day in days)
        return first != second

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template reads a message as a list of parts, as those of multimodal models do."""
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
        return {
            "role": role,
            "content": [{"type": "text", "text": content}] if self._reads_parts else content,
        }

    def _render(self, turns: list[dict[str, Any]], *, answers: bool, day: date | None = None) -> str:
        """Fill in the template; ``answers``: with what precedes an answer."""
        # apply_chat_template() gives its templates the clock of the machine and lets nobody replace that, so
        # the sandbox in which it runs them is used without it.
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
        except Exception as error:  # the template is a program of others: it may raise anything
            first_line = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"the chat template raises {type(error).__name__}: {first_line}",
                where="language_model.chat",
                remedy=WITHOUT_CHAT,
            ) from None
        return str(rendered)

    def _lead_in(self, prompt: str, asked: str) -> str:
        """Return what the template writes between its prompt and an answer, for example a channel's name."""
        turns = [self._turn("user", f"{prompt} {SIGNS}"), self._turn("assistant", ANSWER)]
        try:
            rendered = self._render(turns, answers=False)
        except UsageError:
            return ""
        before, found, _ = rendered.partition(ANSWER)
        lead = before.removeprefix(asked) if before.startswith(asked) else ""
        return lead if found and lead.strip() else ""

    def _first_end(self, text: str, *, is_special: bool = False) -> str:
        """Return the first special token of a text, or the first line before it; ``is_special``: no line."""
        lines = text.strip().splitlines()
        if not lines:
            return ""
        line = lines[0].strip()
        special = {str(token) for token in self.tokenizer.get_added_vocab()} | set(
            self.tokenizer.all_special_tokens
        )
        places = {token: line.find(token) for token in special if token and token in line}
        if not places:
            return "" if is_special else self._known(line)
        first = min(places, key=lambda token: (places[token], -len(token)))
        if places[first] == 0 or is_special:
            return first
        return self._known(line[: places[first]].strip())

    def _known(self, text: str) -> str:
        """Return a text, or nothing if the tokenizer does not know it."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return "" if not ids or self.tokenizer.unk_token_id in ids else text


def closing_of_thought(text: str) -> str:
    """Return what closes a thought that ``text`` opens and leaves open; nothing if it does not."""
    opened = list(THOUGHT.finditer(text))
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
    # An empty thought as Qwen3 writes it: <think>, an empty line, </think>, an empty line.
    return ("\n" if rest.endswith("\n") else "\n\n") + closing + "\n\n"
