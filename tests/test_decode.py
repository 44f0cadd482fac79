"""Sampling, stopping and streaming text."""

from __future__ import annotations

import sys
from copy import copy
from random import Random

import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fusionrag_integrations.execution.decoding import TokenDecoder
from fusionrag_integrations.execution.hf.generation import Generation
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.text_stream import TextStream, text_pieces
from tests.tiny_models import COMMON, heads
from tests.tiny_tokenizers import byte_level_tokenizer, metaspace_tokenizer

VOCABULARY = 10


def scripted(script: list[int]):
    """A model that always prefers the script's next token; also the list of what it was fed."""
    fed: list[int] = []

    def logits(at: int) -> torch.Tensor:
        row = torch.zeros(VOCABULARY)
        row[script[min(at, len(script) - 1)]] = 5.0
        return row

    def step(token_id: int) -> torch.Tensor:
        fed.append(token_id)
        return logits(len(fed))

    return logits(0), step, fed


def generation(prompt: list[int], settings: AnswerSettings, **config: object) -> Generation:
    """What a model of this vocabulary, with such a generation config, is asked to generate by."""
    shape = COMMON | {"vocab_size": VOCABULARY, "hidden_size": 8, "intermediate_size": 8}
    hf = LlamaForCausalLM(LlamaConfig(**shape, **heads(2, 1)))
    hf.generation_config = GenerationConfig(**config)
    return CausalModel(hf, byte_level_tokenizer(), "tiny").generation(prompt, settings.sampling)


def run(script: list[int], settings: AnswerSettings, **config: object):
    logits, step, fed = scripted(script)
    return list(TokenDecoder(logits, step, generation([1, 1, 1], settings, **config))), fed


def test_greedy_ends_at_the_end_token() -> None:
    tokens, fed = run([3, 4, 9, 5], AnswerSettings(), eos_token_id=9)
    assert [t.token_id for t in tokens] == [3, 4, 9]
    assert [t.finished for t in tokens] == [None, None, "stop"]
    assert fed == [3, 4]  # the last token is never fed


def test_several_end_tokens() -> None:
    tokens, _ = run([3, 8, 4], AnswerSettings(), eos_token_id=[9, 8])
    assert [t.token_id for t in tokens] == [3, 8]


def test_length_limit() -> None:
    tokens, _ = run([3], AnswerSettings(max_tokens=4))
    assert [t.token_id for t in tokens] == [3] * 4
    assert tokens[-1].finished == "length"


def test_end_token_wins_over_length_limit() -> None:
    tokens, _ = run([3, 9], AnswerSettings(max_tokens=2), eos_token_id=9)
    assert tokens[-1].finished == "stop"


@pytest.mark.parametrize(("asked", "token"), [(None, 2), (1.0, 1), (1.1, 1), (3.0, 2)])
def test_a_call_may_say_how_repetition_is_penalised(asked: float | None, token: int) -> None:
    """Whatever the model's config says of the prompt's 1; 5 / 1.1 is still ahead of 4."""
    logits = torch.zeros(VOCABULARY)
    logits[1], logits[2] = 5.0, 4.0
    settings = AnswerSettings(max_tokens=1, repetition_penalty=asked)
    asked_for = generation([1], settings, repetition_penalty=2.0)
    assert next(TokenDecoder(logits, lambda _: logits, asked_for)).token_id == token


def test_logits_stay_as_they_are() -> None:
    """Processors may write into what they are given, and whoever made it may need it yet."""
    logits = torch.arange(VOCABULARY, dtype=torch.float32)
    settings = AnswerSettings(max_tokens=3)
    asked_for = generation([1], settings, suppress_tokens=[9], sequence_bias=[[[8], -5.0]])
    tokens = [token.token_id for token in TokenDecoder(logits, lambda _: logits, asked_for)]
    assert tokens == [7, 7, 7]
    assert logits.tolist() == list(range(VOCABULARY))


def test_sampling_follows_the_seed_and_the_limits() -> None:
    flat = torch.tensor([3.0, 2.9, 2.8, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])

    def sample(seed: int, **more: object) -> list[int]:
        settings = AnswerSettings(temperature=1.0, max_tokens=60, **more)
        tokens = TokenDecoder(flat, lambda _: flat, generation([1], settings), seed)
        return [t.token_id for t in tokens]

    assert sample(7) == sample(7)
    assert sample(7) != sample(8)
    assert len(set(sample(7))) > 3
    assert set(sample(7, top_k=2)) == {0, 1}
    assert set(sample(7, top_p=0.3)) <= {0, 1}


class TestTextStream:
    tokenizer = byte_level_tokenizer()

    def pieces(self, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
        stream = TextStream(self.tokenizer, stop)
        out = []
        for token in self.tokenizer(text, add_special_tokens=False).input_ids:
            out.append(stream.push(token))
            if stream.stopped:
                return out, stream
        return [*out, stream.flush()], stream

    @pytest.mark.parametrize("text", ["plain words here", "naïve 日本語 🙂 done", "a\n\n b  c"])
    def test_pieces_make_the_text(self, text: str) -> None:
        out, _ = self.pieces(text)
        assert "".join(out) == text

    def test_characters_come_whole(self) -> None:
        out, _ = self.pieces("🙂🙂")
        assert all("\ufffd" not in piece for piece in out)

    def test_stops_across_token_borders(self) -> None:
        text = "the answer is here. Observation: nothing"
        out, stream = self.pieces(text, ("Observation:",))
        assert stream.stopped
        assert "".join(out) == "the answer is here. "

    def test_the_earliest_stop_counts(self) -> None:
        out, _ = self.pieces("one two three", ("three", "two"))
        assert "".join(out) == "one "

    def test_an_unfinished_stop_is_given_out_in_the_end(self) -> None:
        out, stream = self.pieces("one STO", ("STOP",))
        assert not stream.stopped
        assert "".join(out) == "one STO"
        assert "".join(out[:-1]) == "one "

    def test_what_is_held_back_can_make_a_stop(self) -> None:
        """A byte is only told when no other can follow."""
        tokenizer = metaspace_tokenizer()
        stream = TextStream(tokenizer, ("city\n",))
        ids = tokenizer.convert_tokens_to_ids(["▁the", "▁city", "<0x0A>"])
        assert [stream.push(token) for token in ids] == ["the", " ", ""]
        assert not stream.stopped
        assert stream.flush() == ""
        assert stream.stopped


class TestStopsThatHoldSpecialTokens:
    """They are looked for in the text with special tokens, and what is shown is without."""

    tokenizer = byte_level_tokenizer()
    USER, SYSTEM = "<|user|>", "<|system|>"  # none of them is the end token

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def run(self, text: str, *stop: str) -> tuple[str, bool, int]:
        """What is shown of a text, whether a stop was found, and behind how many tokens."""
        stream, shown = TextStream(self.tokenizer, stop), ""
        ids = self.ids(text)
        for count, token in enumerate(ids, start=1):
            shown += stream.push(token)
            if stream.stopped:
                return shown + stream.flush(), True, len(ids) - count
        return shown + stream.flush(), stream.stopped, 0

    @pytest.mark.parametrize(
        ("stop", "shown"),
        [
            ((USER,), "the city by the sea"),
            ((f"sea{USER}",), "the city by the "),
            ((f"{USER}the old",), "the city by the sea"),
            ((f"sea{USER}the old bank",), "the city by the "),
            ((f"{USER}the new", "old"), "the city by the seathe "),
            ((f"the{USER}", f"a{USER}t"), "the city by the se"),
            ((f"{USER}{SYSTEM}", SYSTEM), "the city by the seathe old bank"),
            ((f"bank{SYSTEM}{USER}",), "the city by the seathe old "),
            ((f"bank{SYSTEM}{SYSTEM}",), "the city by the seathe old banka lamp"),
        ],
    )
    def test_what_is_shown_ends_where_the_stop_begins(
        self, stop: tuple[str, ...], shown: str
    ) -> None:
        text = f"the city by the sea{self.USER}the old bank{self.SYSTEM}{self.USER}a lamp"
        assert self.run(text, *stop)[0] == shown

    def test_the_answer_ends_with_the_token_that_completes_it(self) -> None:
        shown, stopped, left = self.run(f"a lamp{self.USER}it", self.USER)
        assert (shown, stopped, left) == ("a lamp", True, len(self.ids("it")))

    def test_what_may_begin_it_is_held_back(self) -> None:
        stream = TextStream(self.tokenizer, (f"lamp{self.USER}it",))
        pieces = [stream.push(token) for token in self.ids(f"a lamp{self.USER}")]
        assert "".join(pieces) == "a "
        assert stream.push(self.ids("a")[0]) == "lampa"

    @pytest.mark.parametrize(
        ("stop", "shown"),
        [
            ("<|", "a lamp"),
            ("user", "a lamp"),
            ("|>", "a lamp"),
            ("lamp<", "a "),
            ("|>it", "a lamp"),
            ("r|>i", "a lamp"),
            ("<|system", "a lampit"),
            ("lampi", "a "),
            ("p<|user|>t", "a lampit"),
        ],
    )
    def test_a_part_of_a_special_token_is_found(self, stop: str, shown: str) -> None:
        assert self.run(f"a lamp{self.USER}it", stop)[0] == shown

    def test_a_part_ends_the_answer_at_once(self) -> None:
        assert self.run(f"a lamp{self.USER}it", "<|") == ("a lamp", True, len(self.ids("it")))

    def test_what_is_shown_of_special_tokens_is_text(self) -> None:
        stream = TextStream(self.tokenizer, ("er|",), shown=[self.USER])
        ids = self.ids(f"a lamp{self.USER}it")
        assert "".join(map(stream.push, ids)) == "a lamp<|us"

    @pytest.mark.parametrize("seed", range(30))
    def test_any_stops_over_any_tokens(self, seed: int) -> None:
        """Both texts looked through as a whole, beside what a stream makes of them."""
        chosen = Random(seed)
        parts = [chosen.choice(["a", "b", " ", self.USER, self.SYSTEM]) for _ in range(12)]
        stop = "".join(chosen.choice("ab <|us") for _ in range(chosen.randint(1, 3)))
        whole, places = "", []
        for part in parts:
            places += [] if len(part) > 1 else [len(whole)]
            whole += part
        seen = "".join(whole[at] for at in places)
        found = [at for at in (whole.find(stop),) if at >= 0]
        found += [places[at] for at in (seen.find(stop),) if at >= 0]
        expected = "".join(whole[at] for at in places if at < min(found, default=len(whole)))
        stream = TextStream(self.tokenizer, (stop,))
        shown = "".join(stream.push(i) for part in parts for i in self.ids(part))
        assert (shown + stream.flush(), stream.stopped) == (expected, bool(found))

    def test_nor_does_one_that_no_stop_holds_part_what_is_shown(self) -> None:
        assert self.run(f"a la{self.SYSTEM}mp", "lamp", self.USER) == ("a ", True, 0)

    def test_the_same_text_in_plain_tokens_is_found_too(self) -> None:
        ids = [i for part in ("a ", "<", "|", "user", "|", ">") for i in self.ids(part)]
        stream = TextStream(self.tokenizer, (self.USER,))
        assert "".join(map(stream.push, ids)) == "a "
        assert stream.stopped

    def test_half_a_character_before_it_is_shown_as_the_tokenizer_does(self) -> None:
        """More of it could come behind a special token, but not behind a stop."""
        half = self.ids("🙂")[:2]
        stream = TextStream(self.tokenizer, (self.USER,))
        shown = "".join(map(stream.push, [*half, *self.ids(self.USER)])) + stream.flush()
        assert shown == self.tokenizer.decode(half)
        assert stream.stopped

    @pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), metaspace_tokenizer()])
    @pytest.mark.parametrize("seed", range(30))
    def test_up_to_the_first_of_any_tokens(
        self, tokenizer: PreTrainedTokenizerFast, seed: int
    ) -> None:
        chosen = Random(seed)
        ids = [chosen.randrange(2, len(tokenizer)) for _ in range(30)]
        ids[20] = special = tokenizer.bos_token_id
        stream = TextStream(tokenizer, (tokenizer.bos_token,))
        shown = ""
        for token in ids:
            shown += stream.push(token)
            if stream.stopped:
                break
        at = ids.index(special)
        assert stream.stopped
        assert token == special
        assert shown + stream.flush() == tokenizer.decode(ids[:at], skip_special_tokens=True)


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), metaspace_tokenizer()])
class TestWhatTheTokenizerMakesOfThem:
    """Pieces are together what `tokenizer.decode` makes of all tokens, whatever these are."""

    def joined(self, tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> str:
        stream = TextStream(tokenizer, ())
        return "".join([*map(stream.push, token_ids), stream.flush()])

    @pytest.mark.parametrize("text", ["naïve 日本語 🙂 done", "a\n\n b  c", " x <s> y", "🙂🙂"])
    def test_up_to_any_token(self, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        for stop in range(len(ids) + 1):
            expected = tokenizer.decode(ids[:stop], skip_special_tokens=True)
            assert self.joined(tokenizer, ids[:stop]) == expected
            assert "".join(text_pieces(tokenizer, ids[:stop])) == expected

    @pytest.mark.parametrize("seed", range(100))
    def test_of_any_tokens(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        """Half of them bytes, which are mostly no characters."""
        chosen = Random(seed)
        low, high = chosen.choice([(0, len(tokenizer)), (0, 270), (200, 300)])
        ids = [chosen.randrange(low, high) for _ in range(40)]
        assert self.joined(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)

    @pytest.mark.parametrize("seed", range(50))
    def test_with_special_tokens_among_bytes(
        self, tokenizer: PreTrainedTokenizerFast, seed: int
    ) -> None:
        chosen = Random(seed)
        kinds = ["<0x9F>", "<0xF0>", "<0x34>", "<s>", "<s>", "a"]
        names = [chosen.choice(kinds) for _ in range(12)]
        known = tokenizer.get_vocab()
        ids = [known[name] for name in names if name in known]
        assert self.joined(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)

    def test_characters_come_as_soon_as_they_are_whole(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        stream = TextStream(tokenizer, ())
        ids = tokenizer("some words and more", add_special_tokens=False).input_ids
        assert all(stream.push(token) for token in ids)
        assert stream.flush() == ""


@pytest.mark.parametrize(
    ("names", "stop", "shown"),
    [
        (["a", "b", "<0x0A>", "<s>", "c"], "b<s>", "ab\nc"),
        (["a", "b", "<0x0A>", "<s>", "c"], "zzz", "ab\nc"),
        (["a", "b", "<0x0A>", "<s>", "c"], "b\n<s>c", "a"),
        (["a", "b", "<s>", "<0x0A>", "<s>", "c"], "b<s><s>", "ab\nc"),
        (["a", "b", "<s>", "<0x0A>", "c"], "<s>\nc", "ab"),
        (["a", "b", "<0x0A>", "<s>", "c"], "\nc", "ab"),
        (["a", "<0xC3>", "<s>", "<0xA9>", "c"], "a<s>", "aéc"),
        (["a", "<0xC3>", "<s>", "<0xA9>", "c"], "<s>a", "aéc"),
        (["a", "<0xC3>", "<s>", "<0xA9>", "c"], "<s>", "a\ufffd"),
        (["a", "<0xC3>", "<s>", "<0xA9>", "c", "<s>", "a", "b"], "<s>ab", "aéc"),
        (["a", "<0xC3>", "<s>", "<0xA9>", "<s>", "c", "b"], "<s>cb", "aé"),
    ],
)
def test_bytes_keep_their_place_before_special_tokens(
    names: list[str], stop: str, shown: str
) -> None:
    """Bytes are told late, and yet special tokens behind them don't move before them."""
    tokenizer = metaspace_tokenizer()
    stream = TextStream(tokenizer, (stop,))
    pieces = [stream.push(token) for token in tokenizer.convert_tokens_to_ids(names)]
    assert "".join([*pieces, stream.flush()]) == shown


class TestWork:
    """It grows as the tokens do, whatever they are."""

    def work(
        self, tokenizer: PreTrainedTokenizerFast, names: list[str], stop: tuple[str, ...]
    ) -> int:
        """Calls of functions, and tokens and characters that they are given to decode."""
        known = tokenizer.get_vocab()
        ids = [known.get(name, len(tokenizer) + 9) for name in names]
        counted = 0
        decode = tokenizer.decode

        def counting(token_ids: list[int], **options: object) -> str:
            nonlocal counted
            text = decode(token_ids, **options)
            counted += len(token_ids) + len(text)
            return text

        def count(*event: object) -> None:
            nonlocal counted
            counted += 1

        tokenizer = copy(tokenizer)
        tokenizer.decode = counting
        stream = TextStream(tokenizer, stop, ["<shown>"])
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            for token in ids:
                stream.push(token)
            stream.flush()
        finally:
            sys.setprofile(before)
        return counted

    @pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), metaspace_tokenizer()])
    @pytest.mark.parametrize(
        ("names", "stop"),
        [
            (["a"], ()),
            (["a"], ("a" * 5000 + "b",)),
            (["a", "b"], ("ab" * 5000 + "c",)),
            (["a"], tuple(f"{'a' * length}b" for length in range(50))),
            (["<s>"], ()),
            (["<s>"], ("z",)),
            (["<s>"], ("<s>" * 3000 + "b",)),
            (["unknown"], ("z",)),
            (["Ł"], ()),
            (["Ł"], ("z",)),
            (["Ł", "<s>"], ("zz<s>",)),
            (["Ł", "<s>"], ()),
            (["Ł", "unknown"], ()),
            (["<0xFF>"], ()),
            (["<0xFF>", "<s>"], ("zz<s>",)),
            (["<0xFF>", "<s>"], ("\ufffd<s>" * 3000 + "b",)),
            (["<0x0A>", "<s>"], ("\n\nz",)),
            (["<0xC3>", "<s>", "<0xA9>", "a"], ("\ufffd<s>\ufffda" * 3000 + "b",)),
        ],
    )
    def test_grows_as_the_tokens_do(
        self, tokenizer: PreTrainedTokenizerFast, names: list[str], stop: tuple[str, ...]
    ) -> None:
        few, many = (self.work(tokenizer, names * count, stop) for count in (200, 800))
        assert many < 5 * few

    def test_is_the_same_for_many_stops(self) -> None:
        tokenizer = byte_level_tokenizer()
        names = tokenizer.tokenize("the quick brown fox stops here. " * 50)
        one = self.work(tokenizer, names, ("stop 0",))
        assert self.work(tokenizer, names, tuple(f"stop {i}" for i in range(1000))) < 2 * one
