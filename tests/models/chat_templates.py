"""Chat templates of real models, reduced to the parts that determine the prompt and the end of an answer."""

from __future__ import annotations

from typing import NamedTuple


class Template(NamedTuple):
    """A template, the special tokens in its output, and the expected results.

    Attributes:
        text: Jinja source.
        special: tokens of the tokenizer.
        end: what ends an answer; ``</s>`` is the tokenizer's end token.
        after: what follows the signs, up to the answer.
    """

    text: str
    special: tuple[str, ...]
    end: str
    after: str


_TURNS = "{% for m in messages %}"
_ASK = "{% endfor %}{% if add_generation_prompt %}"
CHATML = Template(
    _TURNS
    + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    + _ASK
    + "<|im_start|>assistant\n{% endif %}",
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
    "<|im_end|>\n<|im_start|>assistant\n",
)
GEMMA = Template(
    "<s>{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    + _ASK
    + "<start_of_turn>model\n{% endif %}",
    ("<start_of_turn>", "<end_of_turn>"),
    "<end_of_turn>",
    "<end_of_turn>\n<start_of_turn>model\n",
)
LLAMA3 = Template(
    "{% set day = strftime_now('%d %b %Y') %}<s><|start_header_id|>system<|end_header_id|>\n\nToday "
    "Date: {{ day }}"
    "<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ "
    "m.content | trim }}"
    "<|eot_id|>" + _ASK + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|eot_id|>",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
)
PHI3 = Template(
    _TURNS
    + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n"
    + _ASK
    + "<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    ("<|user|>", "<|assistant|>", "<|end|>"),
    "<|end|>",
    "<|end|>\n<|assistant|>\n",
)
MISTRAL = Template(
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
    (),
    "</s>",
    " [/INST]",
)
LLAMA2 = Template(
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + "
    "' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    (),
    "</s>",
    " [/INST]",
)
NOTHING = Template(
    _TURNS + "{{ m.role | upper }}: {{ m.content }}\n" + _ASK + "ASSISTANT:{% endif %}",
    (),
    "</s>",
    "\nASSISTANT:",
)
ALWAYS_ASKS = Template(
    _TURNS + "{{ m.role | upper }}: {{ m.content }}\n{% endfor %}ASSISTANT:", (), "</s>", "\nASSISTANT:"
)
BETWEEN_TURNS = Template(
    _TURNS + "<|im_start|>{{ m.role }}\n{{ m.content }}{% if not loop.last or m.role == 'user' "
    "%}<|im_end|>\n{% endif %}" + _ASK + "<|im_start|>assistant\n{% endif %}",
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
    "<|im_end|>\n<|im_start|>assistant\n",
)
ROLES_ALONE = Template(
    _TURNS + "<|{{ m.role }}|>\n{{ m.content }}\n" + _ASK + "<|assistant|>\n{% endif %}",
    ("<|user|>", "<|assistant|>"),
    "</s>",
    "\n<|assistant|>\n",
)
SEVERAL_TOKENS = Template(
    _TURNS + "### {{ m.role }}\n{{ m.content }}\n### end\n" + _ASK + "### assistant\n{% endif %}",
    (),
    "### end",
    "\n### end\n### assistant\n",
)
QWEN3 = Template(
    _TURNS + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last "
    "%}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n" + _ASK + "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% "
    "endif %}{% endif %}",
    ("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    "<|im_end|>",
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
)
DEEPSEEK_R1 = Template(
    "<s>{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% else %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end｜>{% endif %}"
    + _ASK
    + "<｜Assistant｜><think>\n{% endif %}",
    ("<｜User｜>", "<｜Assistant｜>", "<｜end｜>"),
    "<｜end｜>",
    "<｜Assistant｜><think>\n\n</think>\n\n",
)
OPENS_OTHERWISE = Template(
    _TURNS + "[{{ m.role }}]{{ m.content }}[/{{ m.role }}]" + _ASK + "[assistant][THINK]{% endif %}",
    ("[/assistant]", "[THINK]", "[/THINK]"),
    "[/assistant]",
    "[/user][assistant][THINK]\n\n[/THINK]\n\n",
)
CHANNELS = Template(
    _TURNS + "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ "
    "m.content }}"
    "{% if m.role == 'assistant' and loop.last %}<|return|>{% else %}<|end|>{% endif %}"
    + _ASK
    + "<|start|>assistant{% endif %}",
    ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
    "<|return|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
)
PARTS = Template(
    _TURNS + "<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}{{ "
    "part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n" + _ASK + "<|im_start|>assistant\n{% endif %}",
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
    "<|im_end|>\n<|im_start|>assistant\n",
)
TEMPLATES = {name.lower(): one for name, one in globals().items() if isinstance(one, Template)}
BROKEN = {
    "raises": "{{ raise_exception('this model does not chat') }}",
    "syntax": "{% for m in messages %}{{ m.content }}",
    "sandbox": "{{ messages.__class__.__mro__[1].__subclasses__() }}{{ messages.append(1) }}",
    "type": "{{ messages[0].content + 1 }}",
    "needs a system turn": "{{ messages[1].content.strip() }}",
    "drops the user": "hello",
    "repeats the user": "{{ messages[0].content }} {{ messages[0].content }}",
}
"""Templates that are refused."""
