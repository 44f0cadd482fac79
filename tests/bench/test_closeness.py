"""Which tokens of an answer count, and what is summed over them, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from fusionrag_integrations.bench.closeness import Closeness, FullText
from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.shared_pass import Answered
from tests.test_prompt import METASPACE
from tests.tiny_tokenizers import byte_level_tokenizer

QUESTION = "Which RIVER passes Lonvale, the town of the Brask Works?"


class Pieces(PreTrainedTokenizerFast):
    """A tokenizer with one token for each of the texts; "" is the special token that ends them."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.ids = tuple(range(len(texts)))
        vocabulary = {text or "<end>": number for number, text in enumerate(texts)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=texts[0]))
        tokenizer.add_special_tokens(["<end>"] if "" in texts else [])
        tokenizer.decoder = decoders.Fuse()
        super().__init__(tokenizer_object=tokenizer)


def asked(question: str = QUESTION, answers: Sequence[str] = ("none",)) -> Question:
    return Question("kind", question, tuple(answers), (), "prompt")


def weights(count: int) -> list[float]:
    """Numbers whose sums tell which of them are in it."""
    return [2.0**i for i in range(count)]


def outcome(ids: Sequence[int], own: Sequence[int] | None = None, greedy: Any = None) -> Answered:
    return Answered(
        text="",
        token_ids=tuple(ids if own is None else own),
        divergence=tuple(weights(len(ids))),
        greedy=tuple(ids if greedy is None else greedy),
        recomputed=0,
        work=0.5,
    )


def closeness(pieces: Pieces, question: Question, **own: Any) -> Closeness:
    return FullText(pieces, pieces.ids, question).closeness(outcome(pieces.ids, **own))


def among(total: float, pieces: Pieces) -> list[str]:
    """The pieces that a sum of weights is of."""
    return [
        text
        for text, weight in zip(pieces.texts, weights(len(pieces.texts)), strict=True)
        if int(total) & int(weight)
    ]


class TestWhatIsCounted:
    @pytest.mark.parametrize(
        ("pieces", "counted"),
        [
            (("The", " river", " is", " the", " Tolen", ".", ""), [" is", " Tolen", ".", ""]),
            (("LON", "VALE", "'s", " mill"), ["'s", " mill"]),  # a word of two tokens
            (("Lon", "vales", " mill"), ["Lon", "vales", " mill"]),  # another word
            (("town", "ship"), ["town", "ship"]),  # a token alone says nothing
            (("river town", " mill"), [" mill"]),  # a token of two words that stand there
            (("river mill", " town"), ["river mill"]),  # of two, one of which doesn't
            ((" (", "Brask", ")", "\n"), [" (", ")", "\n"]),  # no words, so no repetition
            (("Strasse", " passes"), ["Strasse"]),
        ],
    )
    def test_what_only_repeats_the_question_is_left_out(
        self, pieces: tuple[str, ...], counted: list[str]
    ) -> None:
        made = Pieces(*pieces)
        found = closeness(made, asked())
        assert among(found.kl, made) == counted
        assert found.counted == len(counted)
        assert found.tokens == len(pieces)

    def test_where_nothing_else_is_left_all_is_counted(self) -> None:
        made = Pieces("The", " Brask", " Works")
        found = closeness(made, asked())
        assert (found.counted, found.kl) == (3, 7.0)

    def test_the_end_alone_is_something_left(self) -> None:
        made = Pieces("The", " Brask", " Works", "")
        found = closeness(made, asked())
        assert (found.counted, found.kl) == (1, 8.0)

    def test_words_are_folded_not_lowered(self) -> None:
        found = closeness(Pieces("STRASSE", " x"), asked("Welche Straße?"))
        assert found.counted == 1

    def test_a_character_of_several_tokens_is_part_of_its_word(self) -> None:
        """Of a byte-level tokenizer: the first bytes of a letter add no text by themselves."""
        tokenizer = byte_level_tokenizer()
        ids = tokenizer("Łódź x", add_special_tokens=False).input_ids
        assert len(ids) > 6  # so some tokens are parts of letters
        full = FullText(tokenizer, ids, asked("Where is Łódź?"))
        found = full.closeness(outcome(ids))
        assert found.counted == len(tokenizer(" x", add_special_tokens=False).input_ids)

    @pytest.mark.parametrize(
        "tokenizer", [byte_level_tokenizer(), METASPACE], ids=["byte-level", "metaspace"]
    )
    def test_with_tokenizers_as_models_have_them(self, tokenizer: Any) -> None:
        """By what each token adds to the text that transformers decodes."""
        text = "The company is in the small town by the sea"
        ids = tokenizer(text, add_special_tokens=False).input_ids
        ends = [len(tokenizer.decode(ids[: i + 1])) for i in range(len(ids))]
        assert ends[-1] == len(text)
        words = [word for word in text.split() for _ in f"{word} "]  # of each character
        new = [words[end - 1].lower() not in ("the", "company", "is") for end in ends]
        question = asked("Where is the company?", ["small town"])
        found = FullText(tokenizer, ids, question).closeness(outcome(ids))
        assert found.kl == sum(
            w for w, is_new in zip(weights(len(ids)), new, strict=True) if is_new
        )
        assert 0 < found.counted < len(ids)
        inside = [words[end - 1] in ("small", "town") for end in ends]
        assert found.kl_answer == sum(
            w for w, is_inside in zip(weights(len(ids)), inside, strict=True) if is_inside
        )


class TestTheAcceptedAnswer:
    def test_its_tokens_alone(self) -> None:
        made = Pieces("It", " is", " the", " Old", " Tol", "en", ".", "")
        found = closeness(made, asked(answers=("Mira", "old tolen")))
        assert among(found.kl_answer, made) == [" Old", " Tol", "en"]
        assert found.answer_tokens == 3

    def test_it_may_repeat_the_question(self) -> None:
        found = closeness(Pieces(" Brask", " Works", ""), asked(answers=("Brask Works",)))
        assert (found.answer_tokens, found.kl_answer) == (2, 3.0)
        assert (found.counted, found.kl) == (1, 4.0)

    def test_where_there_is_none(self) -> None:
        found = closeness(Pieces(" Brask", ""), asked(answers=("Tolen",)))
        assert (found.answer_tokens, found.kl_answer) == (0, 0.0)


class TestAgreement:
    made = Pieces("It", " is", " so", "")

    def test_by_token_and_as_a_whole(self) -> None:
        found = closeness(self.made, asked(), greedy=(0, 9, 2, 9), own=(0, 9, 1))
        assert (found.tokens, found.agreed, found.equal) == (4, 2, False)

    @pytest.mark.parametrize("own", [(0, 1, 2), (0, 1, 2, 3, 3), ()])
    def test_another_end_is_another_answer(self, own: tuple[int, ...]) -> None:
        assert not closeness(self.made, asked(), own=own).equal

    def test_the_same_answer(self) -> None:
        found = closeness(self.made, asked())
        assert (found.equal, found.agreed) == (True, 4)
