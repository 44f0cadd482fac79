"""Invented texts of any length, and a tokenizer for them: where only sizes matter."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

WORDS = 20_000
WORDS_A_CHUNK = 130


def words() -> list[str]:
    """Invented words, always the same."""
    draw = random.Random(0)
    letters = "aaabcdeeeefghiiijklmnooopqrsttuuvwxyz"
    return ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(WORDS)]


def texts(count: int) -> Iterator[str]:
    """Texts of `WORDS_A_CHUNK`, all different, always the same."""
    draw = random.Random(1)
    known = words()
    for _ in range(count):
        yield " ".join(draw.choices(known, k=WORDS_A_CHUNK))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a little over one token a word, as large models have for English."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    bpe.train_from_iterator((f" {word}" for word in words()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")
