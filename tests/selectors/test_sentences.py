"""Sentences: by hand, and in a real tokenizer's tokens against counting full stops."""

from __future__ import annotations

import pytest

from fusionrag_integrations.documents.chunk_record import ChunkRecord, EncodedChunk
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.prompt import encode_chunk
from fusionrag_integrations.prompt.assembled import AssembledPrompt, Span
from fusionrag_integrations.selectors.sentences import sentence_numbers
from tests.selectors.made import known, prompt_with
from tests.tiny_tokenizers import byte_level_tokenizer


def groups(prompt: AssembledPrompt) -> list[int]:
    """The sentences counted from 0 on, without those of which the prompt has no token."""
    numbers = sentence_numbers(prompt).tolist()
    assert numbers == sorted(numbers)
    assert numbers[0] >= 0
    counted = {number: i for i, number in enumerate(dict.fromkeys(numbers))}
    return [counted[number] for number in numbers]


def whole(record: ChunkRecord) -> AssembledPrompt:
    count = len(record.encoded.token_ids)
    return prompt_with([(record, 0, 2, count)], count + 5)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["He", " left", ".", " She", " stayed", "."], [0, 0, 0, 1, 1, 1]),
        (["Who", "?", " Me", "!", " So", "."], [0, 0, 1, 1, 2, 2]),
        (['"', "Stop", '."', " Then", " he", " left", "."], [0, 0, 0, 1, 1, 1, 1]),
        (['"', "Stop", ".", '"', " Then"], [0, 0, 0, 0, 1]),
        (["(Really", "?')", " Yes"], [0, 0, 1]),
        (["[see", " p", ".]", " Yes"], [0, 0, 0, 1]),
        (['"', "Stop", ',"', " he", " said", "."], [0, 0, 0, 0, 0, 0]),
        (["3", ".", "5", " km", " of", " a", ".", "b"], [0] * 8),  # no space, no end
        (["One", ".", "  ", "Two"], [0, 0, 0, 1]),  # white space by itself ends a sentence
        (["One", ". ", "Two"], [0, 0, 1]),
        (["One", ".", "\n", "Two"], [0, 0, 0, 1]),
        (["A", " title", "\n\n", "Its", " text"], [0, 0, 0, 1, 1]),
        (["-", " one", "\n", "-", " two", "\n", "-"], [0, 0, 0, 1, 1, 1, 2]),
        (["What", "?!", " No", "...", " Yes"], [0, 0, 1, 1, 2]),
        (["日本", "。", "東京", "！", "行", "？", "終"], [0, 0, 1, 1, 2, 2, 3]),
        (["日本。", "東京"], [0, 1]),
        (["No", " end", " at", " all"], [0] * 4),
        (["All", " there", " is", "."], [0] * 4),
        (["“", "Stop", ".”", " Then"], [0, 0, 0, 1]),
        (["「", "止", "。」", "彼"], [0, 0, 0, 1]),
    ],
)
def test_sentences_by_hand(pieces: list[str], expected: list[int]) -> None:
    assert groups(whole(known("c", pieces))) == expected


def test_tokens_that_share_a_character_stand_in_its_sentence() -> None:
    """An emoji or a rare character is several byte tokens, all with the same bounds."""
    offsets = ((0, 1), (1, 2), (2, 4), (2, 4), (2, 4), (4, 5))  # a . (space and emoji) b
    encoded = EncodedChunk(Chunk("c", "d", 0, "a. 🙂b"), (1, 2, 3, 4, 5, 6), offsets)
    span = Span(ChunkRecord(encoded, "k"), "isolated", 0, 0, 6)
    assert groups(AssembledPrompt((0,) * 8, (span,), (6, 8))) == [0, 0, 1, 1, 1, 1]


def test_a_tokenizers_own_tokens() -> None:
    text = 'The fox jumps over the dog. "Is it lazy?" Nobody knows! The river\nis near the bank.'
    starts = [
        0,
        text.index('"Is'),
        text.index("Nobody"),
        text.index("The river"),
        text.index("is "),
    ]
    starts[-1] = text.rindex("is near")
    encoded = encode_chunk(byte_level_tokenizer(), Chunk("c", "d", 0, text))
    assert any(text[low] == " " for low, _ in encoded.offsets)  # tokens that begin with a space
    expected = []
    for low, high in encoded.offsets:
        word = low + len(text[low:high]) - len(text[low:high].lstrip())  # its first own character
        expected.append(sum(start <= min(word, high - 1) for start in starts) - 1)
    assert groups(whole(ChunkRecord(encoded, "k"))) == expected
    assert set(expected) == {0, 1, 2, 3, 4}


A = known("a", ["He", " left", ".", " She", " stayed", ".", " So", " did", " I"])
B = known("b", ["Rain", ".", " Snow"])


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([(A, 1, 2, 8)], [0, 0, 1, 1, 1, 2, 2, 2]),  # cut in the first sentence
        ([(A, 4, 2, 5)], [0, 0, 1, 1, 1]),  # cut in the second
        ([(A, 6, 2, 3)], [0, 0, 0]),
        ([(A, 0, 2, 4), (A, 5, 7, 4)], [0, 0, 0, 1, 1, 2, 2, 2]),  # one token is missing
        ([(A, 0, 2, 1), (A, 2, 4, 1), (A, 3, 5, 6)], [0, 0, 1, 1, 1, 2, 2, 2]),
        ([(A, 6, 2, 3), (B, 0, 5, 3)], [0, 0, 0, 1, 1, 2]),  # no sentence goes on in the next
        ([(B, 2, 2, 1), (A, 1, 3, 2)], [0, 1, 1]),
        ([(B, 0, 2, 3), (A, 7, 5, 2), (B, 0, 7, 3)], [0, 0, 1, 2, 2, 3, 3, 4]),  # b twice
        ([(A, 6, 2, 3), (A, 0, 5, 3)], [0, 0, 0, 1, 1, 1]),  # a again, from before
    ],
)
def test_sentences_of_runs(runs: list[tuple[ChunkRecord, int, int, int]], expected: list) -> None:
    assert groups(prompt_with(runs, 30)) == expected


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([(B, 0, 2, 3), (B, 0, 5, 3)], [0, 0, 1, 2, 2, 3]),
        ([(B, 0, 2, 3), (B, 0, 6, 3)], [0, 0, 1, 2, 2, 3]),  # with a token in between
        ([(B, 0, 2, 3), (B, 1, 6, 2)], [0, 0, 1, 2, 3]),
    ],
)
def test_the_same_chunk_twice_in_a_row(
    runs: list[tuple[ChunkRecord, int, int, int]], expected: list[int]
) -> None:
    assert groups(prompt_with(runs, 20)) == expected
