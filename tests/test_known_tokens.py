"""Tokens of known chunks are taken as they are: always the same as those of the whole text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fusionrag_integrations.bench.invented import make_tokenizer, texts
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.prompt import (
    EncodedPrompt,
    RenderedPrompt,
    encode_chunk,
    encode_rendered,
)
from fusionrag_integrations.prompt.assembled import TextMatch
from fusionrag_integrations.prompt.control_tokens import text_tokenizer
from fusionrag_integrations.prompt.tokenize import MARGIN, _inside, _stops_at_spaces
from tests.test_prompt import CHAT, METASPACE, PLAIN
from tests.tiny_tokenizers import TRAINING

# As GPT-4, Llama 3 and Qwen split words, numbers, and what is neither.
MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_of(rule: Any, normalizer: Any = None, *, trim: bool = True) -> Any:
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizer
    bpe.pre_tokenizer = rule
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    bpe.train_from_iterator([*TRAINING, *texts(40)], trainer)
    bpe.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=trim),
            processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")


def split_like(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
PIECED = {
    "gpt-2": tokenizer_of(BYTE_LEVEL),
    "prefix-space": tokenizer_of(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "modern": tokenizer_of(split_like(MODERN), normalizers.NFC(), trim=False),
    "modern-trimmed": tokenizer_of(split_like(MODERN)),
    "plain": PLAIN,
    "chat": CHAT,
    "invented": make_tokenizer(),
}
# Over a space between words these may merge, so nothing is known of a part.
WHOLE = {
    "metaspace": METASPACE,
    "lines": tokenizer_of(split_like(r"\n")),
    "lower-case": tokenizer_of(BYTE_LEVEL, normalizers.Lowercase()),
}
CHUNKS = [
    *texts(4),
    "Zürich has 12,345 lamps; an old café sells 7 of them, and nobody said why. "
    "The 漢字 sign over its door is 300 years old and reads as nobody knows any more today.",
]


def matched(tokenizer: Any, chunks: list[str], text: str) -> list[TextMatch]:
    found, at = [], 0
    for number, chunk in enumerate(chunks):
        start = text.index(chunk, at)
        at = start + len(chunk)
        encoded = encode_chunk(tokenizer, Chunk(f"c{number}", "d", number, chunk))
        found.append(TextMatch(ChunkRecord(encoded, "00"), start, at))
    return found


def check(tokenizer: Any, text: str, matches: list[TextMatch], plain: bool = True) -> EncodedPrompt:
    places = tuple((match.start, match.stop) for match in matches)
    worded = RenderedPrompt(text, len(text), plain, quoted=places)
    pieced = encode_rendered(tokenizer, worded, matches)
    assert pieced == encode_rendered(tokenizer, worded)
    return pieced


def encoded_characters(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How long the texts are that are encoded as a whole from now on, and not in pieces."""
    lengths: list[int] = []
    own = text_tokenizer(tokenizer)
    backend = own.backend

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def encode_batch(self, texts: list[str], **options: Any) -> Any:
            if len(texts) == 1:
                lengths.append(len(texts[0]))
            return backend.encode_batch(texts, **options)

    monkeypatch.setattr(own, "backend", Watched())
    return lengths


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("separator", ["\n\n", " ", "", ".", "   \n", " - "])
@pytest.mark.parametrize("name", [*PIECED, *WHOLE])
def test_tokens_are_those_of_the_whole_text(name: str, separator: str, plain: bool) -> None:
    tokenizer = (PIECED | WHOLE)[name]
    text = f"Context:{separator}{separator.join(CHUNKS)}{separator}\n\nQuestion: who?"
    check(tokenizer, text, matched(tokenizer, CHUNKS, text), plain)


@pytest.mark.parametrize("name", PIECED)
def test_only_what_is_unknown_is_encoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = PIECED[name]
    text = "\n\n".join(["Context:", *CHUNKS, "Question: who?"])
    worded = RenderedPrompt(text, len(text), plain=False)
    expected, matches = encode_rendered(tokenizer, worded), matched(tokenizer, CHUNKS, text)
    whole = encoded_characters(tokenizer, monkeypatch)
    assert encode_rendered(tokenizer, worded, matches) == expected
    assert not whole


@pytest.mark.parametrize("name", WHOLE)
def test_where_words_may_merge_everything_is_encoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = WHOLE[name]
    text = "\n\n".join(CHUNKS)
    matches = matched(tokenizer, CHUNKS, text)
    whole = encoded_characters(tokenizer, monkeypatch)
    encode_rendered(tokenizer, RenderedPrompt(text, len(text), plain=False), matches)
    assert whole == [len(text)]


def test_text_that_is_not_normalised_is_encoded_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = PIECED["modern"]
    text = "\n\n".join([*CHUNKS, "cafe\u0301"])
    matches = matched(tokenizer, CHUNKS, text)
    whole = encoded_characters(tokenizer, monkeypatch)
    check(tokenizer, text, matches, plain=False)
    assert whole == [len(text)] * 2


def test_what_does_not_come_out_as_it_was_is_encoded_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A record of other tokens for the same text, as of another tokenizer: its ends tell."""
    tokenizer = PIECED["gpt-2"]
    text = "\n\n".join(CHUNKS)
    other = matched(PIECED["modern"], CHUNKS[:1], text)
    whole = encoded_characters(tokenizer, monkeypatch)
    check(tokenizer, text, other, plain=False)
    assert whole == [len(text)] * 2


def test_every_token_of_the_margins_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one of them comes out as another than the record's, everything is encoded."""
    tokenizer = PIECED["modern"]
    text = "\n\n".join(CHUNKS[:3])
    first, second, third = matched(tokenizer, CHUNKS[:3], text)
    encoded = second.record.encoded
    (inside,) = filter(None, [_inside(text, second)])
    ends = [
        *range(inside.first - MARGIN, inside.first),
        *range(inside.stop, inside.stop + MARGIN),
    ]
    whole = encoded_characters(tokenizer, monkeypatch)
    check(tokenizer, text, [first, second, third], plain=False)
    assert whole == [len(text)]  # what it is compared with
    for at in ends:
        whole.clear()
        ids = (*encoded.token_ids[:at], 1, *encoded.token_ids[at + 1 :])
        record = ChunkRecord(replace(encoded, token_ids=ids), "00")
        check(tokenizer, text, [first, replace(second, record=record), third], plain=False)
        assert whole == [len(text)] * 2


def test_where_tokens_stop_at_spaces() -> None:
    assert all(_stops_at_spaces(tokenizer.backend_tokenizer, "a") for tokenizer in PIECED.values())
    assert not any(
        _stops_at_spaces(tokenizer.backend_tokenizer, "a") for tokenizer in WHOLE.values()
    )


@pytest.mark.parametrize("cut", [200, 40, 3])
def test_a_chunk_that_the_prompt_cuts_short(cut: int) -> None:
    for tokenizer in PIECED.values():
        text = f"{CHUNKS[1]}\n\n{CHUNKS[0][:cut]}"  # and that is the end
        (first,) = matched(tokenizer, CHUNKS[1:2], text)
        (whole,) = matched(tokenizer, CHUNKS[:1], CHUNKS[0])
        check(tokenizer, text, [first, TextMatch(whole.record, first.stop + 2, len(text))])


@pytest.mark.parametrize("cut", [200, 40, 3])
def test_a_cut_chunk_before_another(cut: int) -> None:
    for tokenizer in PIECED.values():
        text = f"{CHUNKS[0][:cut]}\n\n{CHUNKS[1]}"
        first, second = matched(tokenizer, CHUNKS[:2], "\n\n".join(CHUNKS[:2]))
        start = cut + 2
        matches = [
            TextMatch(first.record, 0, cut),
            TextMatch(second.record, start, start + len(CHUNKS[1])),
        ]
        check(tokenizer, text, matches)


def test_chunks_too_short_to_have_an_inside() -> None:
    short = ["a b", "one two three four five", " ".join("abcdefgh"), "," * 200, "x" * 90]
    for tokenizer in PIECED.values():
        text = "\n".join(short)
        check(tokenizer, text, matched(tokenizer, short, text))
    assert MARGIN > 1


words = st.sampled_from(
    [
        "lamp",
        "lamps",
        "  ",
        "\n",
        "12",
        "3456",
        "don't",
        "é",
        "漢字",
        "🙂",
        "-",
        ".",
        "'s",
        "ab cd",
        "the",
        "of",
        "<s>",
        "\t",
        "Zürich",
        "...",
        "a",
        "I",
        "e\u0301",
    ]
)
chunk_texts = st.lists(words, min_size=30, max_size=60).map(" ".join).map(str.strip)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(PIECED)),
    st.lists(chunk_texts, min_size=1, max_size=3),
    st.lists(words, max_size=4).map("".join),
    st.booleans(),
)
def test_any_texts_and_separators(
    name: str, chunks: list[str], separator: str, plain: bool
) -> None:
    tokenizer = PIECED[name]
    text = separator.join([*chunks, "the end"])
    check(tokenizer, text, matched(tokenizer, chunks, text), plain)
