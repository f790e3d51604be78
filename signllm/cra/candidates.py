"""Candidate words: the merges of byte-pair encoding over character sequences, in the order they are learnt.

``tokenizers`` does the learning; each character is one code point for it, each video one word, so that no
merge crosses videos. Merges are ordered by how often their pair occurs: the first n are the candidates of
size n. Counting is over the whole corpus, so videos may come in any order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from signllm.cra.segmentation import Ints

FIRST_CODE_POINT = 0x10000
"""Characters start above the surrogates: 0x10FFFF − 0x10000 leaves room for a million."""


def learn_candidates(
    characters: Ints, counts: Ints, *, limit: int, longest: int, min_frequency: int = 2
) -> tuple[tuple[int, ...], ...]:
    """Learn at most ``limit`` candidate words of 2 to ``longest`` characters, most useful merge first.

    Args:
        characters: (sum R,) packed sequences without repeats.
        counts: (B,) how many characters each video has.
        limit: how many candidates at most.
        longest: characters in the longest word.
        min_frequency: a pair that occurs less often is not merged.
    """
    present = np.unique(characters)
    if limit < 1 or longest < 2 or len(present) == 0:
        return ()
    tokenizer = Tokenizer(BPE())
    trainer = BpeTrainer(
        vocab_size=len(present) + limit,
        min_frequency=min_frequency,
        max_token_length=longest + 1,  # exclusive in tokenizers 0.23, against its own documentation
        show_progress=False,
    )
    tokenizer.train_from_iterator(_spelt(characters, counts), trainer)
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    spellings = (tuple(ord(point) - FIRST_CODE_POINT for point in token) for token, _ in tokens)
    return tuple(spelling for spelling in spellings if 2 <= len(spelling) <= longest)


def _spelt(characters: Ints, counts: Ints) -> Iterator[str]:
    text = (characters + FIRST_CODE_POINT).astype("<u4").tobytes().decode("utf-32-le")
    begin = 0
    for count in counts.tolist():
        yield text[begin : begin + count]
        begin += count
