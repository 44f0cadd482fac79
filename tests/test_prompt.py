"""Prompt text or messages -> tokens, with the runs that a chunk's KV can stand for."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from html import escape
from itertools import pairwise
from threading import Event, Thread
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt import (
    BRIEFLY,
    NEUTRAL,
    EncodedPrompt,
    assemble,
    encode,
    encode_chunk,
    ingest_prefix,
    question_as_prompt,
    question_prompt,
)
from fusionrag_integrations.prompt.assemble import MIN_QUESTION, MIN_TOKENS
from fusionrag_integrations.prompt.assembled import AssembledPrompt, Span, TextMatch
from fusionrag_integrations.prompt.match import ChunkMatcher
from fusionrag_integrations.prompt.messages import Message
from fusionrag_integrations.prompt.resolve import resolve
from fusionrag_integrations.prompt.tokenize import encode_text
from tests.tiny_tokenizers import (
    CHAT_TEMPLATE,
    DATED_TEMPLATES,
    byte_level_tokenizer,
    metaspace_tokenizer,
)

PLAIN = byte_level_tokenizer()
CHAT = byte_level_tokenizer(chat=True)
METASPACE = metaspace_tokenizer()
TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", [PLAIN, CHAT, METASPACE], ids=["byte-level", "chat", "metaspace"]
)
FOX = "The quick brown fox jumps over the lazy dog near the old river bank in the town by the sea."
SEA = "Zoë's café by the sea – 日本語 🙂🙂 – makes lamps in a very small town."


def with_template(template: str) -> Any:
    tokenizer = deepcopy(CHAT)
    tokenizer.chat_template = template
    return tokenizer


def set_clock(monkeypatch: pytest.MonkeyPatch, time: datetime) -> None:
    """What chat templates are told of the time."""
    clock = type("Clock", (datetime,), {"now": classmethod(lambda cls, zone=None: time)})
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)


def record(text: str, name: str = "c", tokenizer: Any = PLAIN) -> ChunkRecord:
    return ChunkRecord(encode_chunk(tokenizer, Chunk(name, "d", 0, text)), "00")


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
    def test_is_what_stands_before_the_first_chunk_in_a_real_prompt(self) -> None:
        prefix = ingest_prefix(CHAT)
        assert prefix == f"<s><|system|>\n{NEUTRAL}<|end|>\n<|user|>\nContext:\n"
        assert encode(CHAT, question_prompt([FOX], "Who?")).text.startswith(prefix + FOX)

    def test_without_a_template_it_is_the_bare_instruction(self) -> None:
        assert ingest_prefix(PLAIN) == f"<s>{NEUTRAL}\n\nContext:\n"

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
        assert prefix == f"<s><|user|>\n{NEUTRAL}\n\nContext:\n"

    @pytest.mark.parametrize("name", DATED_TEMPLATES)
    def test_knows_no_day(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        tokenizer, prefixes, prompts = with_template(DATED_TEMPLATES[name]), [], []
        for day in (1, 2):
            set_clock(monkeypatch, datetime(2031, 12, day, 13, day))
            prefixes.append(ingest_prefix(tokenizer))
            prompts.append(encode(tokenizer, question_prompt([FOX], "Who?")).text)
        assert prefixes[0] == prefixes[1]
        assert NEUTRAL in prefixes[0]
        assert "%" not in prefixes[0]
        assert prompts[0] != prompts[1]  # the model is told the day that it is

    @pytest.mark.parametrize("start", ["\n", "  {% if true %}x{% endif %}", " ", "{#- no -#}\n"])
    def test_keeps_the_white_space_that_a_template_begins_with(self, start: str) -> None:
        tokenizer = with_template(start + "{% set day = strftime_now('%d') %}" + CHAT_TEMPLATE)
        prompt = encode(tokenizer, question_prompt([FOX], "Who?")).text
        assert prompt.startswith(ingest_prefix(tokenizer) + FOX)


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


CHAT_SHORT = (
    f"Context:\n{FOX}\n\n{SEA}\n\nAnswer in as few words as possible.\nQuestion: Who?\nAnswer:"
)


def test_a_short_answer_is_asked_for_in_exactly_these_words() -> None:
    assert question_as_prompt(CHAT, [FOX, SEA], "Who?", BRIEFLY) == [
        {"role": "system", "content": "Answer the question from the context."},
        {"role": "user", "content": CHAT_SHORT},
    ]


def test_a_base_model_is_asked_by_the_same_words_as_one_text() -> None:
    prompt = question_as_prompt(PLAIN, [FOX, SEA], "Who?", BRIEFLY)
    assert prompt == f"Answer the question from the context.\n\n{CHAT_SHORT}"
    assert isinstance(prompt, str)
    assert prompt.startswith(ingest_prefix(PLAIN).removeprefix("<s>"))  # as chunks are prefilled
    encoded = encode(PLAIN, prompt)
    match = TextMatch(record(FOX), prompt.index(FOX), prompt.index(FOX) + len(FOX))
    assert [span.record for span in assemble(encoded, [match]).spans] == [record(FOX)]


def simple_runs(encoded: EncodedPrompt, match: TextMatch) -> list[Span]:
    """One token after the other: what `assemble` must give for a match, made plainly."""
    chunk = match.record.encoded
    last = len(encoded.token_ids) - 1
    starts = [start for start, _ in encoded.offsets]
    position = max(0, next((i for i, s in enumerate(starts) if s >= match.start), last) - 1)
    runs: list[list[int]] = []  # source start, start, length
    for source, (token, (low, high)) in enumerate(zip(chunk.token_ids, chunk.offsets, strict=True)):
        bounds = low + match.start, high + match.start
        if bounds[1] > match.stop:
            break
        while position < last and encoded.offsets[position] < bounds:
            position += 1
        if position >= last:
            break
        if encoded.offsets[position] != bounds or encoded.token_ids[position] != token:
            continue
        if runs and runs[-1][0] + runs[-1][2] == source and runs[-1][1] + runs[-1][2] == position:
            runs[-1][2] += 1
        else:
            runs.append([source, position, 1])
        position += 1
    return [Span(match.record, match.variant, *run) for run in runs]


PIECES = (
    *("the", " the", "town", " by", "sea", "S", "ing", " ", "  ", "\n", "\n\n", "\t", "\r\n", "."),
    *(
        "\u200b",
        "\u00a0",
        "e\u0301",
        "\u0301",
        "é",
        "ë",
        "日",
        "本語",
        "🙂",
        "👩\u200d🔬",
        "🇺🇦",
        "ü",
    ),
    *("{x}", "{{x}}", "&amp;", "<|end|>", "<s>", "\0", "\u2581", "\ufffd", "ﬁ", "…", "0", "12"),
)
TEXTS = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"]), max_size=30)
CHUNKS = TEXTS.map(lambda pieces: "".join(pieces).strip()).filter(bool)


@TOKENIZERS
@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.tuples(TEXTS.map("".join), CHUNKS, st.none() | st.integers(1, 40)), max_size=4
    ),
    changed=st.lists(st.tuples(st.integers(0, 99), st.booleans()), max_size=3),
)
def test_what_is_reused_is_what_one_token_after_the_other_gives(
    tokenizer: Any, parts: list[tuple[str, str, int | None]], changed: list[tuple[int, bool]]
) -> None:
    """Chunks, whole or cut, between separators; then some of the prompt's tokens are changed."""
    text = "".join(before + chunk[:cut] for before, chunk, cut in parts)
    question = ". Which of the lamps in the small town is it?"
    encoded = tokenizer(f"x{text}{question}", return_offsets_mapping=True)
    ids, offsets = list(encoded.input_ids), list(encoded.offset_mapping)
    for at, place in changed:
        at %= len(ids)
        ids[at], offsets[at] = (ids[at], (offsets[at][0], 10**6)) if place else (3, offsets[at])
    prompt = EncodedPrompt(f"x{text}{question}", tuple(ids), tuple(offsets), len(text) + 10**3)
    matches, start = [], 1
    for i, (before, chunk, cut) in enumerate(parts):
        start += len(before)
        stop = start + len(chunk[:cut])
        matches.append(TextMatch(record(chunk, f"c{i}", tokenizer), start, stop))
        start = stop
    handles = [match.record.handle for match in matches]
    expected = [span for match in matches for span in simple_runs(prompt, match)]
    assert list(assemble(prompt, matches, handles).spans) == expected


def found_and_laid(
    tokenizer: Any, prompt: str | list[Message], *texts: str, named: Sequence[int] = ()
) -> tuple[EncodedPrompt, list[TextMatch], AssembledPrompt]:
    """The whole way of a prompt over chunks with these texts; `named` ones have handles."""
    records = {str(i): record(text, str(i), tokenizer) for i, text in enumerate(texts)}
    matcher = ChunkMatcher(list(records), lambda ids: [(i, "", texts[int(i)]) for i in ids])
    encoded = encode(tokenizer, prompt)
    handles = [records[str(i)].handle for i in named]
    found = matcher.find(encoded.text, lambda ids: {i: records[i] for i in ids}, handles)
    matches = resolve(found, handles)
    laid = assemble(encoded, matches, handles)
    expected = [span for match in matches for span in simple_runs(encoded, match)]
    assert all(span in expected for span in laid.spans)
    for span in laid.spans:  # the same tokens of the same characters
        (match,) = (m for m in matches if m.record == span.record and covers(m, encoded, span))
        for i in range(span.length):
            low, high = span.record.encoded.offsets[span.source_start + i]
            token = span.record.encoded.token_ids[span.source_start + i]
            assert encoded.token_ids[span.start + i] == token
            assert encoded.offsets[span.start + i] == (low + match.start, high + match.start)
    return encoded, matches, laid


def covers(match: TextMatch, encoded: EncodedPrompt, span: Span) -> bool:
    low, high = encoded.offsets[span.start][0], encoded.offsets[span.stop - 1][1]
    return match.start <= low and high <= match.stop


def shares(laid: AssembledPrompt, matches: Sequence[TextMatch]) -> list[float]:
    """For each match how many of its chunk's tokens are reused."""
    return [
        sum(span.length for span in laid.spans if span.record == match.record)
        / sum(len(m.record.encoded.token_ids) for m in matches if m.record == match.record)
        for match in matches
    ]


LONG = " ".join([FOX, "Mira founded the company in the small town by the sea.", FOX.lower()])
ODD = {
    "tabs": LONG.replace(" ", "\t"),
    "CRLF": LONG.replace(". ", ".\r\n").replace(" ", "\r\n", 3),
    "no-break spaces": LONG.replace(" ", "\u00a0"),
    "zero-width spaces": LONG.replace(" ", "\u200b"),
    "zero-width ends": f"\u200b{LONG}\u200b",
    "byte order mark": f"\ufeff{LONG}\ufeff",
    "combining ends": f"\u0301{LONG}\u0301",
    "combining marks": LONG.replace("e", "e\u0301"),
    "composed": LONG.replace("e", "é"),
    "joined emoji": LONG.replace(" ", " 👩\u200d🔬"),
    "emoji ends": f"👩\u200d🔬{LONG}👩\u200d🔬",
    "flags": LONG.replace(" ", "🇺🇦"),
    "CJK": "日本語の文章には空白がない。" * 12,
    "Arabic": "كان في المدينة الصغيرة بيت قديم قرب النهر. " * 5 + "نعم",
    "braces": LONG.replace("fox", "{x}").replace("dog", "{{x}}"),
    "template syntax": LONG.replace("fox", "{% if x %}{{ x }}{# no #}${x} %s {0!r}"),
    "brace ends": f"{{{{{LONG}}}}}",
    "HTML escapes": LONG.replace(" the ", " &amp; &lt;b&gt; &#39; "),
    "HTML": LONG.replace("fox", "<b>fox & 'dog'</b>"),
    "special tokens": LONG.replace("fox", "<|endoftext|>"),
    "backslashes": LONG.replace(" ", " \\n "),
    "many spaces": LONG.replace(" ", "    "),
    "NUL": LONG.replace(" ", "\0", 2),
}


@TOKENIZERS
@pytest.mark.parametrize("separator", ["\n", "\n\n", " ", "", "\n---\n", "<doc>"], ids=repr)
@pytest.mark.parametrize("name", ODD)
def test_odd_texts_are_found_and_reused(tokenizer: Any, name: str, separator: str) -> None:
    text = ODD[name]
    assert text == text.strip()
    context = separator.join(["Context:", text, FOX.upper(), text, ""])
    encoded, matches, laid = found_and_laid(
        tokenizer, f"{context}Question: which town is it, and by which sea?", text
    )
    assert [encoded.text[match.start : match.stop] for match in matches] == [text, text]
    assert min(shares(laid, matches)) >= 0.95


@TOKENIZERS
class TestTheWholeWay:
    """Matching and assembling together; every reused token is checked in `found_and_laid`."""

    QUESTION = "Question: which town is it, and by which sea?"

    def test_an_escaped_chunk_is_reused_up_to_the_first_escaped_character(
        self, tokenizer: Any
    ) -> None:
        text = f"{LONG} 'Fish' & <chips> {SEA}"
        prompt = f"Context:\n{escape(text)}\n\n{self.QUESTION}"
        encoded, (match,), laid = found_and_laid(tokenizer, prompt, text)
        assert encoded.text[match.start : match.stop] == f"{LONG} "
        assert laid.spans
        assert encoded.offsets[laid.spans[-1].stop - 1][1] <= match.stop

    def test_a_chunk_that_is_escaped_early_is_computed(self, tokenizer: Any) -> None:
        text = f"<b>{LONG}</b>"
        prompt = f"Context:\n{escape(text)}\n\n{self.QUESTION}"
        assert found_and_laid(tokenizer, prompt, text)[2].spans == ()

    def test_the_chunk_that_holds_another_is_reused_where_all_of_it_stands(
        self, tokenizer: Any
    ) -> None:
        outer = f"{SEA} {LONG} {SEA}"
        prompt = f"Context:\n{outer}\n\n{LONG}\n\n{self.QUESTION}"
        _, matches, laid = found_and_laid(tokenizer, prompt, LONG, outer, SEA)
        assert [match.record.chunk.text for match in matches] == [outer, LONG]
        assert min(shares(laid, matches)) >= 0.95

    @pytest.mark.parametrize("cut", [90, 101, 150])
    def test_a_cut_chunk_is_reused_as_far_as_it_goes(self, tokenizer: Any, cut: int) -> None:
        prompt = f"Context:\n{LONG[:cut]}...\n\n{self.QUESTION}"
        encoded, (match,), laid = found_and_laid(tokenizer, prompt, LONG)
        assert match.stop - match.start >= cut
        reused = encoded.offsets[laid.spans[-1].stop - 1][1]
        assert match.stop - 10 <= reused <= match.stop

    def test_a_short_chunk_is_reused_only_with_a_handle(self, tokenizer: Any) -> None:
        short = "Mira makes lamps."
        prompt = f"Context:\n{short}\n\n{self.QUESTION}"
        assert found_and_laid(tokenizer, prompt, short, LONG)[2].spans == ()
        _, (match,), laid = found_and_laid(tokenizer, prompt, short, LONG, named=[0])
        reused = sum(span.length for span in laid.spans)
        assert reused >= len(match.record.encoded.token_ids) - 2  # the newlines may merge

    def test_without_white_space_around_it_a_chunk_is_reused_in_a_question(
        self, tokenizer: Any
    ) -> None:
        prompt = f"Is it true that '{LONG}', or did Mira of the small town make that up?"
        _, matches, laid = found_and_laid(tokenizer, prompt, LONG)
        assert shares(laid, matches)[0] >= 0.95


A, B, C = (f"{name} {LONG}" for name in ("Ada.", "Bela.", "Carla."))


def asked(prompt: str, *texts: str) -> tuple[list[str], str]:
    """Texts of the reused chunks, in order, and the words of the question."""
    _, _, laid = found_and_laid(CHAT, prompt, *(texts or (A, B, C)))
    reused = [span.record.chunk.text for span in laid.spans]
    texts_reused = [text for i, text in enumerate(reused) if i == 0 or reused[i - 1] != text]
    return texts_reused, CHAT.decode(laid.token_ids[slice(*laid.question)])


class TestTheQuestion:
    CONTEXT = f"Context:\n{A}\n\n{B}\n\n{C}\n\n"

    @pytest.mark.parametrize(
        "question",
        [
            f"Question: Who wrote '{A}'?",
            f"Question: Who wrote '{A}'?\nAnswer:",
            f"Who wrote this: {C}",
            f"Question: Which is true, '{A}' or '{B}'?",
            f"Question: Which is true: '{B}' '{B}'?",
        ],
    )
    def test_a_chunk_that_it_quotes_is_part_of_it(self, question: str) -> None:
        reused, words = asked(self.CONTEXT + question)
        assert reused[:3] == [A, B, C]
        assert len(CHAT(words).input_ids) >= MIN_QUESTION
        assert self.CONTEXT.count(A) == 1
        assert (self.CONTEXT + question).endswith(words)

    def test_all_of_it_is_the_question_where_only_the_quote_was_known(self) -> None:
        reused, words = asked(f"{self.CONTEXT}Question: Who wrote '{A}'?")
        assert reused == [A, B, C]
        assert words == f"\n\nQuestion: Who wrote '{A}'?"

    def test_a_quote_with_enough_words_behind_it_is_reused(self) -> None:
        words = "' - who wrote that, and did she live in the town by the sea?"
        assert asked(f"{self.CONTEXT}Is '{A}{words}") == ([A, B, C, A], words)

    @pytest.mark.parametrize("context", ["{A}\n\n{B}\n\n{A}", "[1] {A}\n\n[2] {B}\n\n[3] {A}"])
    def test_a_chunk_that_stands_twice_in_the_context_is_reused_twice(self, context: str) -> None:
        reused, words = asked(f"{context.format(A=A, B=B)}\n\nWho?")
        assert (reused, words) == ([A, B, A], "\n\nWho?")

    def test_it_may_stand_before_the_context(self) -> None:
        reused, words = asked(f"Question: who makes lamps?\n\n{A}\n\n{B}")
        assert (reused, words) == ([A, B], "<|end|>\n<|assistant|>\n")

    def test_a_quote_of_a_chunk_that_stands_nowhere_else_is_reused(self) -> None:
        assert asked(f"Who wrote '{A}'?") == ([A], "'?")


@pytest.mark.parametrize("kind", ["prompt", "chunk", "text"])
def test_other_threads_go_on_while_a_long_text_is_encoded(kind: str) -> None:
    """Shown by the longest pause of one that looks at the clock, beside how long encoding takes."""
    text = "x" * 1_500_000
    ways = {
        "prompt": lambda: encode(PLAIN, text),
        "chunk": lambda: encode_chunk(PLAIN, Chunk("a", "b", 0, text)),
        "text": lambda: encode_text(PLAIN, text),
    }
    ended, times = Event(), [perf_counter()]

    def look() -> None:
        while not ended.wait(0.001):
            times.append(perf_counter())

    looking = Thread(target=look)
    looking.start()
    started = perf_counter()
    ways[kind]()
    took = perf_counter() - started
    ended.set()
    looking.join()
    pauses = [after - before for before, after in pairwise(times)]
    assert max(pauses) < took / 2
