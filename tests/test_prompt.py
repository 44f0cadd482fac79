"""Prompt text or messages -> tokens, with the runs that a chunk's KV can stand for."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt import (
    MIN_TOKENS,
    NEUTRAL,
    EncodedPrompt,
    assemble,
    encode,
    encode_chunk,
    ingest_prefix,
    question_prompt,
)
from fusionrag_integrations.types import AssembledPrompt, Chunk, ChunkRecord, KVHandle, TextMatch
from tests.tiny_tokenizers import CHAT_TEMPLATE, byte_level_tokenizer

PLAIN = byte_level_tokenizer()
CHAT = byte_level_tokenizer(chat=True)
FOX = "The quick brown fox jumps over the lazy dog near the old river bank in the town by the sea."
SEA = "Zoë's café by the sea – 日本語 🙂🙂 – makes lamps in a very small town."


def with_template(template: str) -> Any:
    tokenizer = deepcopy(CHAT)
    tokenizer.chat_template = template
    return tokenizer


def record(text: str, name: str = "c") -> ChunkRecord:
    return ChunkRecord(encode_chunk(PLAIN, Chunk(name, "d", 0, text)), "00")


def matched(encoded: EncodedPrompt, text: str, cut: int | None = None) -> TextMatch:
    """The text's first occurrence; its first `cut` characters if given."""
    start = encoded.text.index(text[:cut])
    return TextMatch(record(text), start, start + len(text[:cut]))


def laid_over(prompt: str, *texts: str, handles: tuple[KVHandle, ...] = ()) -> AssembledPrompt:
    encoded = encode(PLAIN, prompt)
    return assemble(encoded, [matched(encoded, text) for text in texts], handles)


def words(prompt: AssembledPrompt, start: int, stop: int) -> str:
    return str(PLAIN.decode(prompt.token_ids[start:stop]))


class TestEncode:
    def test_a_string_is_one_user_message(self) -> None:
        encoded = encode(CHAT, "Who makes lamps?")
        assert encoded == encode(CHAT, [{"role": "user", "content": "Who makes lamps?"}])
        assert encoded.text == "<s><|user|>\nWho makes lamps?<|end|>\n<|assistant|>\n"

    def test_tokens_are_those_of_the_template(self) -> None:
        messages = question_prompt([FOX, SEA], "Who?")
        expected = CHAT.apply_chat_template(messages, add_generation_prompt=True)
        assert list(encode(CHAT, messages).token_ids) == expected["input_ids"]

    def test_without_a_template_a_string_stays_as_it_is(self) -> None:
        encoded = encode(PLAIN, f" {FOX}\n")
        assert encoded.text == f" {FOX}\n"
        assert list(encoded.token_ids) == PLAIN(f" {FOX}\n").input_ids
        assert encoded.content_stop == len(encoded.text)

    def test_offsets_say_where_each_token_stands(self) -> None:
        encoded = encode(CHAT, FOX)
        for token, (start, stop) in zip(encoded.token_ids, encoded.offsets, strict=True):
            assert CHAT.decode([token]) == encoded.text[start:stop]

    def test_content_ends_with_the_users_last_word(self) -> None:
        messages = [
            {"role": "user", "content": "lamps?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "  Which lamps?  "},
        ]
        encoded = encode(CHAT, messages)
        assert encoded.text[: encoded.content_stop].endswith("\nWhich lamps?")
        assert encoded.text[encoded.content_stop :] == "<|end|>\n<|assistant|>\n"

    @pytest.mark.parametrize("tokenizer", [PLAIN, CHAT], ids=["plain", "chat"])
    @pytest.mark.parametrize("prompt", ["", " \n", []])
    def test_an_empty_prompt_is_refused(self, tokenizer: Any, prompt: Any) -> None:
        with pytest.raises(InvalidInputError, match=r"is empty|no messages"):
            encode(tokenizer, prompt)

    def test_empty_messages_are_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="all empty"):
            encode(CHAT, [{"role": "user", "content": " "}])

    @pytest.mark.parametrize(
        "message", ["hello", {"content": "x"}, {"role": "user", "content": ["x"]}, None]
    )
    def test_a_malformed_message_is_shown(self, message: Any) -> None:
        with pytest.raises(InvalidInputError, match="'role' and 'content'"):
            encode(CHAT, [message])

    def test_messages_need_a_template(self) -> None:
        with pytest.raises(InvalidInputError, match="no chat template"):
            encode(PLAIN, question_prompt([], "Who?"))


class TestIngestPrefix:
    def test_is_what_stands_before_the_user_in_a_real_prompt(self) -> None:
        prefix = ingest_prefix(CHAT)
        assert prefix == f"<s><|system|>\n{NEUTRAL}<|end|>\n<|user|>\n"
        assert encode(CHAT, question_prompt([FOX], "Who?")).text.startswith(prefix)

    def test_without_a_template_it_is_the_bare_instruction(self) -> None:
        assert ingest_prefix(PLAIN) == f"<s>{NEUTRAL}\n\n"

    @pytest.mark.parametrize(
        "condition",
        [
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}",
            "{% set messages = messages | selectattr('role', 'equalto', 'user') | list %}",
        ],
        ids=["refuses", "drops"],
    )
    def test_a_template_without_system_messages_gets_one_user_message(self, condition: str) -> None:
        prefix = ingest_prefix(with_template(condition + CHAT_TEMPLATE))
        assert prefix == f"<s><|user|>\n{NEUTRAL}\n\n"


class TestEncodeChunk:
    @pytest.mark.parametrize("text", [FOX, SEA])
    def test_tokens_cover_the_text_and_nothing_else(self, text: str) -> None:
        encoded = encode_chunk(CHAT, Chunk("c", "d", 0, text))
        assert CHAT.decode(encoded.token_ids) == text
        covered = {i for start, stop in encoded.offsets for i in range(start, stop)}
        assert covered == set(range(len(text)))
        assert not set(encoded.token_ids) & set(CHAT.all_special_ids)


class TestAssemble:
    @pytest.mark.parametrize("text", [FOX, SEA])
    @pytest.mark.parametrize("before", ["", "Context:\n", "Context: ", "x", "\n\n"])
    @pytest.mark.parametrize("after", ["\n\nWho?", " Who?", "er?", ".. Who?", "s"])
    def test_exactly_the_equal_tokens_at_equal_places_are_reused(
        self, text: str, before: str, after: str
    ) -> None:
        prompt = laid_over(before + text + after, text)
        encoded, chunk = encode(PLAIN, before + text + after), record(text).encoded
        own = {
            (token, start + len(before), stop + len(before))
            for token, (start, stop) in zip(chunk.token_ids, chunk.offsets, strict=True)
        }
        expected = [
            position
            for position, (token, bounds) in enumerate(
                zip(encoded.token_ids, encoded.offsets, strict=True)
            )
            if (token, *bounds) in own and position < len(encoded.token_ids) - 1
        ]
        assert len(expected) >= MIN_TOKENS
        assert list(prompt.chunk_positions) == expected
        for span in prompt.spans:
            source = slice(span.source_start, span.source_start + span.length)
            assert prompt.token_ids[span.start : span.stop] == chunk.token_ids[source]

    def test_tokens_that_a_boundary_changed_are_computed(self) -> None:
        text = "the town by the sea makes lamps, and the fox jumps over the lazy dog near the river"
        whole = laid_over(f"Context:\n{text}\n\nWho?", text)
        assert [words(whole, s.start, s.stop) for s in whole.spans] == [text]
        merged = laid_over(f"Context: {text}\n\nWho?", text)  # " the" is one token
        assert [words(merged, s.start, s.stop) for s in merged.spans] == [text[3:]]

    def test_a_token_must_be_equal_in_id_and_in_place(self) -> None:
        encoded, changed = encode(PLAIN, f"{FOX}\n\nWho?"), 5
        match = matched(encoded, FOX)
        ids, offsets = list(encoded.token_ids), list(encoded.offsets)
        ids[changed] += 1
        offsets[changed] = (offsets[changed][0], offsets[changed][1] + 1)
        for wrong in (
            replace(encoded, token_ids=tuple(ids)),
            replace(encoded, offsets=tuple(offsets)),
        ):
            whole, cut = (assemble(e, [match]).chunk_positions for e in (encoded, wrong))
            assert set(whole) - set(cut) == {changed}

    def test_two_chunks_lie_one_behind_the_other(self) -> None:
        prompt = laid_over(f"{FOX}\n\n{SEA}\n\nWho?", FOX, SEA)
        assert [words(prompt, s.start, s.stop) for s in prompt.spans] == [FOX, SEA]
        assert words(prompt, *prompt.question) == "\n\nWho?"

    @pytest.mark.parametrize("cut", range(40, 50))
    def test_a_cut_chunk_reuses_only_its_beginning(self, cut: int) -> None:
        encoded = encode(PLAIN, f"Context:\n{SEA[:cut]}\n\n{SEA[50:]} Who?")
        prompt = assemble(encoded, [matched(encoded, SEA, cut)])
        (span,) = prompt.spans
        reused = words(prompt, span.start, span.stop)
        assert span.source_start == 0
        assert SEA[:cut].startswith(reused)
        assert len(reused) > cut - 6

    def test_few_tokens_need_a_handle(self) -> None:
        short = "It makes lamps."
        assert len(record(short).encoded.token_ids) < MIN_TOKENS
        prompt = f"Context:\n{short}\n\nWho?"
        assert laid_over(prompt, short).spans == ()
        assert len(laid_over(prompt, short, handles=(KVHandle("other", "00"),)).spans) == 0
        assert len(laid_over(prompt, short, handles=(KVHandle("c", "00"),)).spans) == 1

    def test_the_last_token_is_always_computed(self) -> None:
        prompt = laid_over(FOX, FOX)
        assert prompt.fresh_positions == (len(prompt) - 1,)
        assert prompt.question == (len(prompt) - 1, len(prompt))

    def test_the_question_is_what_the_user_says_behind_the_last_chunk(self) -> None:
        encoded = encode(CHAT, f"Before.\n\n{FOX}\n\nWho makes lamps?")
        prompt = assemble(encoded, [matched(encoded, FOX)])
        assert CHAT.decode(prompt.token_ids[slice(*prompt.question)]) == "\n\nWho makes lamps?"

    def test_a_chunk_as_last_word_leaves_the_templates_tokens_as_question(self) -> None:
        encoded = encode(CHAT, f"Who?\n\n{FOX}")
        prompt = assemble(encoded, [matched(encoded, FOX)])
        question = CHAT.decode(prompt.token_ids[slice(*prompt.question)])
        assert question == "<|end|>\n<|assistant|>\n"

    def test_without_matches_everything_is_fresh(self) -> None:
        prompt = assemble(encode(CHAT, "Who?"), [])
        assert prompt.spans == ()
        assert prompt.fresh_positions == tuple(range(len(prompt)))
        assert CHAT.decode(prompt.token_ids[slice(*prompt.question)]).endswith("Who?")

    def test_the_matchs_variant_is_kept(self) -> None:
        encoded = encode(PLAIN, f"{FOX} Who?")
        match = TextMatch(record(FOX), 0, len(FOX), "isolated")
        assert {span.variant for span in assemble(encoded, [match]).spans} == {"isolated"}


def test_a_question_prompt_holds_the_chunks_byte_for_byte_and_the_question() -> None:
    system, user = question_prompt([FOX, SEA], "Who?")
    assert (system["role"], user["role"]) == ("system", "user")
    assert f"{FOX}\n\n{SEA}" in user["content"]
    assert user["content"].endswith("Question: Who?\nAnswer:")
