"""The demo's large language model in small: a LLaMA trained on text alone, then frozen.

A real LLM can be steered: given content words in any order it writes the sentence. One trained on plain
sentences alone cannot, so this small one sees two tasks: plain sentences, and
sentences after a prompt and their own content words, jumbled, repeated, dropped and *blurred*: the embedding
of a content word is mixed with those of other words and noise (NEFTune, arXiv 2310.05914, adds noise alone).
What a projector hands to a frozen LLM is blurred in just this way. It never sees a sign, a unit or a held-out
sentence.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.progress import progress

if TYPE_CHECKING:
    import torch

BEGIN, END, PAD = "<s>", "</s>", "<pad>"
IGNORED = -100
SORTED_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class TextModelConfig:
    """Size and training of the demo's language model; prompt and separator are those of stage 3.

    800 steps of 16 rows take 37 s of one core, where 800 of 32 rows took 82. What stage 3 reaches with the
    true signs did not fall: a BLEU-4 of 97 instead of 90 with seed 0.
    """

    vocabulary: int = 512
    width: int = 128
    layers: int = 3
    heads: int = 4
    steps: int = 800
    batch_size: int = 16
    learning_rate: float = 3e-3
    prompt: str = "Translate this sign language into English:"
    separator: str = "\n"
    plain_share: float = 0.1
    seed: int = 0


def train_text_model(
    texts: Sequence[str], stop_words: frozenset[str], folder: Path, config: TextModelConfig
) -> float:
    """Train tokenizer and model on ``texts`` and save them to ``folder`` as ``transformers`` does.

    ``folder`` must not be there yet: it appears at the end, whole.

    Returns:
        the mean loss of the last tenth of the steps, in nats per text token.
    """
    import torch

    torch.manual_seed(config.seed)
    tokenizer = _train_tokenizer(texts, config)
    model = _build_model(len(tokenizer), config)
    task = _Task(texts, stop_words, tokenizer, config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=0.01, betas=(0.9, 0.98)
    )
    losses: list[float] = []
    with progress(config.steps, "language model", unit="steps") as bar:
        for step, batch in zip(range(config.steps), task.batches(), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(step, config.steps)
            loss = task.loss(model, batch, blur=min(1.0, 2.0 * step / config.steps))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            bar.advance(note=f"loss {losses[-1]:.2f}")
    _save(folder, model, tokenizer)
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def _save(folder: Path, *parts: Any) -> None:
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    for part in parts:
        part.save_pretrained(partial)
    partial.rename(folder)


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 30)
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _train_tokenizer(texts: Sequence[str], config: TextModelConfig) -> Any:
    """Byte-level BPE: any prompt can be written, frequent words are one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, config.prompt], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD)


def _build_model(vocabulary: int, config: TextModelConfig) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.width,
            intermediate_size=2 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


@dataclass(frozen=True)
class _Row:
    """One example: prefix tokens, which of them are content (may be blurred), and the text's tokens."""

    prefix: list[int]
    blurred: list[bool]
    text: list[int]


class _Task:
    """Draws examples and scores a model on them."""

    def __init__(
        self, texts: Sequence[str], stop_words: frozenset[str], tokenizer: Any, config: TextModelConfig
    ) -> None:
        self.texts, self.stop_words, self.tokenizer, self.config = texts, stop_words, tokenizer, config
        words = sorted({word for text in texts for word in text.split()})
        self.spelling = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in words}
        self.content = [word for word in words if word not in stop_words]
        self.prompt = [
            tokenizer.bos_token_id,
            *tokenizer(config.prompt, add_special_tokens=False)["input_ids"],
        ]
        self.separator = tokenizer(config.separator, add_special_tokens=False)["input_ids"]
        self.rng = random.Random(config.seed)

    def batches(self) -> Iterator[list[_Row]]:
        """Yield batches without end.

        Rows of ``SORTED_BATCHES`` batches are drawn at a time, and rows of similar length share a batch: a
        row is padded to the longest of its batch, and padding would be a third of the work.
        """
        size = self.config.batch_size
        while True:
            rows = [self._row(self.rng.choice(self.texts)) for _ in range(SORTED_BATCHES * size)]
            rows.sort(key=lambda row: len(row.prefix) + len(row.text))
            batches = [rows[start : start + size] for start in range(0, len(rows), size)]
            self.rng.shuffle(batches)
            yield from batches

    def _row(self, text: str) -> _Row:
        target = [token for word in text.split() for token in self.spelling[word]] + [
            self.tokenizer.eos_token_id
        ]
        if self.rng.random() < self.config.plain_share:
            return _Row(prefix=[self.tokenizer.bos_token_id], blurred=[False], text=target)
        notes = [token for word in self._notes(text) for token in self.spelling[word]]
        prefix = [*self.prompt, *notes, *self.separator]
        blurred = [False] * len(self.prompt) + [True] * len(notes) + [False] * len(self.separator)
        return _Row(prefix=prefix, blurred=blurred, text=target)

    def _notes(self, text: str) -> list[str]:
        """The text's content words as somebody might jot them down.

        Out of order, repeated, one missing, one wrong.
        """
        words = [word for word in text.split() if word not in self.stop_words]
        if self.rng.random() < 0.5:
            self.rng.shuffle(words)
        words = [word for word in words if self.rng.random() > 0.04] or words
        most = self.rng.choice((1, 2, 4, 6))
        notes = [word for word in words for _ in range(self.rng.randint((most + 1) // 2, most))]
        return [self.rng.choice(self.content) if self.rng.random() < 0.05 else word for word in notes]

    def loss(self, model: Any, rows: list[_Row], *, blur: float) -> torch.Tensor:
        """Cross-entropy of the texts' tokens, in nats; ``blur`` from 0 (clear notes, at first) to 1."""
        import torch
        from torch.nn import functional

        longest = max(len(row.prefix) + len(row.text) for row in rows)
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        labels = torch.full_like(tokens, IGNORED)
        blurred = torch.zeros_like(tokens, dtype=torch.bool)
        mask = torch.zeros_like(tokens)
        for place, row in enumerate(rows):
            start, end = len(row.prefix), len(row.prefix) + len(row.text)
            tokens[place, :end] = torch.tensor(row.prefix + row.text)
            labels[place, start:end] = torch.tensor(row.text)
            blurred[place, :start] = torch.tensor(row.blurred)
            mask[place, :end] = 1
        embedded = self._blur(model.get_input_embeddings(), tokens, blurred, blur)
        hidden = model.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state
        example, before = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        return functional.cross_entropy(model.lm_head(hidden[example, before]), labels[example, before + 1])

    def _blur(self, table: Any, tokens: torch.Tensor, blurred: torch.Tensor, most: float) -> torch.Tensor:
        """Mix the marked embeddings with three others and noise; how much differs from row to row."""
        import torch

        embedded = table(tokens)
        others = table(self._content_tokens()[torch.randint(len(self.content), (*tokens.shape, 3))]).mean(
            dim=2
        )
        share = most * torch.rand(tokens.shape[0], 1, 1) * torch.rand(*tokens.shape, 1)
        noise = (
            torch.randn_like(embedded)
            * table.weight.detach().std()
            * most
            * torch.rand(tokens.shape[0], 1, 1)
        )
        mixed = (1 - share) * embedded + 1.7 * share * others + noise
        return torch.where(blurred[..., None], mixed, embedded)

    def _content_tokens(self) -> torch.Tensor:
        import torch

        return torch.tensor([self.spelling[word][0] for word in self.content])
