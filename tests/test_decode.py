"""Sampling, stopping and streaming text."""

from __future__ import annotations

from random import Random

import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fusionrag_integrations.decode import TextStream, decode_tokens, text_pieces
from fusionrag_integrations.model import CausalModel, Generation
from fusionrag_integrations.types import AnswerSettings
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
    return CausalModel(hf, byte_level_tokenizer(), "tiny").generation(prompt, settings)


def run(script: list[int], settings: AnswerSettings, **config: object):
    logits, step, fed = scripted(script)
    return list(decode_tokens(logits, step, generation([1, 1, 1], settings, **config))), fed


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
    assert next(decode_tokens(logits, lambda _: logits, asked_for)).token_id == token


def test_logits_stay_as_they_are() -> None:
    """Processors may write into what they are given, and whoever made it may need it yet."""
    logits = torch.arange(VOCABULARY, dtype=torch.float32)
    settings = AnswerSettings(max_tokens=3)
    asked_for = generation([1], settings, suppress_tokens=[9], sequence_bias=[[[8], -5.0]])
    tokens = [token.token_id for token in decode_tokens(logits, lambda _: logits, asked_for)]
    assert tokens == [7, 7, 7]
    assert logits.tolist() == list(range(VOCABULARY))


def test_sampling_follows_the_seed_and_the_limits() -> None:
    flat = torch.tensor([3.0, 2.9, 2.8, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])

    def sample(seed: int, **more: object) -> list[int]:
        settings = AnswerSettings(temperature=1.0, max_tokens=60, **more)
        tokens = decode_tokens(flat, lambda _: flat, generation([1], settings), seed)
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

    def test_characters_come_as_soon_as_they_are_whole(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        stream = TextStream(tokenizer, ())
        ids = tokenizer("some words and more", add_special_tokens=False).input_ids
        assert all(stream.push(token) for token in ids)
        assert stream.flush() == ""
