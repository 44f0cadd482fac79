"""The hard suite: what its questions and contexts are like. How well they are answered is measured
elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby, pairwise

import pytest
from transformers import AutoTokenizer

from fusionrag_integrations.demo import CHUNK_TOKENS, MODEL_DIR
from fusionrag_integrations.demo.hard import (
    HARD_KINDS,
    PROMPT_TOKENS,
    REPEATS,
    HardQuestion,
    build_hard_suite,
)
from fusionrag_integrations.demo.hard_worlds import FAMILY, NEAREST, UNANSWERABLE
from fusionrag_integrations.demo.names import PLACE_ENDINGS, is_held_out
from fusionrag_integrations.demo.relations import ASK, BRIDGE_WORD, RELATIONS
from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt import encode, question_prompt

SEED, A_KIND = "hard tests", 40
DOCUMENTS, QUESTIONS = build_hard_suite(SEED, A_KIND)
BY_ID = {document.id: document for document in DOCUMENTS}
BACK_REFERENCES = tuple(k for k in HARD_KINDS if k not in ("two_antecedents", UNANSWERABLE))


def of_kind(kind: str) -> list[HardQuestion]:
    return [question for question in QUESTIONS if question.kind == kind]


def text(paragraph: tuple[str, int]) -> str:
    document, number = paragraph
    return BY_ID[document].passages[number].text


def titles(question: HardQuestion) -> set[str]:
    return {BY_ID[document].title for document, _ in question.context}


def about(question: HardQuestion, title: str) -> list[tuple[str, int]]:
    """The context's paragraphs of the documents about a subject, in the prompt's order."""
    return [p for p in question.context if BY_ID[p[0]].title == title]


def subject(question: HardQuestion) -> str:
    (title,) = (t for t in titles(question) if question.question.startswith(f"{t} "))
    return title


def wording(clause: str) -> str:
    """The wording of a clause, `<verb> <ask>?`."""
    (found,) = {r.verb for r in RELATIONS for ask in ASK[r.answer] if clause == f"{r.verb} {ask}?"}
    return found


def asked_verb(question: HardQuestion) -> str:
    return wording(question.question.removeprefix(f"{subject(question)} "))


def referring(paragraph: tuple[str, int], verb: str) -> str | None:
    """What a paragraph states by pronoun: the answer in `She <verb> <answer>.`"""
    found = re.search(rf"\b(?:He|She|It) {verb} ([^.]+)\.", text(paragraph))
    return found and found[1]


def test_a_seed_always_gives_the_same_suite() -> None:
    assert build_hard_suite(SEED, A_KIND) == (DOCUMENTS, QUESTIONS)
    assert build_hard_suite("another seed", 1)[1] != build_hard_suite(SEED, 1)[1]


def test_fewer_questions_are_the_first_of_more() -> None:
    documents, questions = build_hard_suite(SEED, 3, HARD_KINDS[:2])
    assert questions == [q for kind in HARD_KINDS[:2] for q in of_kind(kind)[:3]]
    assert {d.id for d in documents} <= BY_ID.keys()


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match="easy; known are crowded, many_documents"):
        build_hard_suite(SEED, 1, ("crowded", "easy"))


def test_so_many_questions_of_each_kind_over_documents_with_ids_of_their_own() -> None:
    assert Counter(q.kind for q in QUESTIONS) == dict.fromkeys(HARD_KINDS, A_KIND)
    assert len(BY_ID) == len(DOCUMENTS)
    for question in QUESTIONS:  # a context's documents come from one world of its kind
        (world,) = {document.rpartition("-")[0] for document, _ in question.context}
        assert world.rpartition("-")[0] == question.kind


def test_names_were_never_seen_in_training() -> None:
    names = {a for q in QUESTIONS for a in q.answers if a[0].isupper()}
    assert names
    assert all(is_held_out(name) for name in names | {d.title for d in DOCUMENTS})


@pytest.mark.parametrize("chunk_tokens", [CHUNK_TOKENS, 256])
def test_each_paragraph_is_one_chunk(chunk_tokens: int) -> None:
    chunker = Chunker(chunk_tokens)
    for document in DOCUMENTS[::7]:
        chunks = chunker.split(document)
        assert [c.text for c in chunks] == [p.text for p in document.passages]
        assert [c.index for c in chunks] == list(range(len(document.passages)))


def test_prompts_are_no_longer_than_in_training() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    for question in QUESTIONS:
        prompt = question_prompt([text(p) for p in question.context], question.question)
        assert 1_300 < len(encode(tokenizer, prompt).token_ids) < PROMPT_TOKENS


@pytest.mark.parametrize(
    "kind", [k for k in HARD_KINDS if k not in ("shuffled", "repeated", "name_left_out")]
)
def test_documents_stand_whole_and_once(kind: str) -> None:
    for question in of_kind(kind):
        runs = [(i, [n for _, n in run]) for i, run in groupby(question.context, lambda p: p[0])]
        assert len({i for i, _ in runs}) == len(runs)
        assert all(numbers == list(range(len(BY_ID[i].passages))) for i, numbers in runs)


@pytest.mark.parametrize("kind", BACK_REFERENCES)
def test_the_answer_is_stated_by_pronoun(kind: str) -> None:
    for question in of_kind(kind):
        verb, paragraphs = asked_verb(question), about(question, subject(question))
        stated = [referring(p, verb) for p in paragraphs]
        assert question.answers[0] in stated
        assert not any(
            f"{subject(question)} {verb} {question.answers[0]}." in text(p) for p in paragraphs
        )


def test_crowded_contexts_say_the_same_of_others() -> None:
    others = []
    for question in of_kind("crowded"):
        verb, own = asked_verb(question), about(question, subject(question))
        others.append(sum(bool(referring(p, verb)) for p in question.context if p not in own))
    assert min(others) >= NEAREST


def test_many_documents_and_long_chunks() -> None:
    assert all(len(titles(q)) >= 20 for q in of_kind("many_documents"))
    lengths = [len(text(p)) for q in of_kind("long_chunks") for p in q.context]
    usual = [len(text(p)) for q in of_kind("crowded") for p in q.context]
    assert min(lengths) > max(usual)


def test_new_wordings_are_those_that_training_never_saw() -> None:
    new = {r.verb for r in RELATIONS if r.held_out}
    assert {asked_verb(q) for q in of_kind("new_wordings")} <= new


def test_shuffled_paragraphs_have_lost_their_predecessors() -> None:
    later, kept = 0, 0
    for question in of_kind("shuffled"):
        assert len(set(question.context)) == len(question.context)
        later += sum(number > 0 for _, number in question.context)
        kept += sum(a == (i, n - 1) for a, (i, n) in pairwise(question.context))
    assert kept < 0.1 * later


def test_the_changed_fact_stands_behind_the_earlier_one() -> None:
    for question in of_kind("changed_fact"):
        verb, title = asked_verb(question), subject(question)
        paragraphs = about(question, title)
        assert len({i for i, _ in paragraphs}) == 2
        stated = [
            found[1]
            for p in paragraphs
            if (found := re.search(rf"\b(?:{title}|He|She|It) {verb} ([^.]+)\.", text(p)))
        ]
        assert len(stated) == 2
        assert stated[0] != stated[1] == question.answers[0]


def test_both_facts_of_a_bridge_are_stated_by_pronoun() -> None:
    orders = set()
    for question in of_kind("two_antecedents"):
        head, clause = question.question.split(f" {BRIDGE_WORD} ")
        title = subject(question)
        first_verb = head.removeprefix(f"{title} ")
        (first,) = (p for p in about(question, title) if referring(p, first_verb))
        person = referring(first, first_verb)
        assert person in titles(question)
        answers = [referring(p, wording(clause)) for p in about(question, person)]
        assert question.answers[0] in answers
        orders.add(
            question.context.index(first) < question.context.index(about(question, person)[0])
        )
    assert orders == {True, False}


def name_parts(name: str) -> set[str]:
    for ending in PLACE_ENDINGS:
        if " " not in name and name.endswith(ending):
            return {name.removesuffix(ending), ending}
    return set(name.split(" "))


def test_namesakes_say_the_same_by_pronoun() -> None:
    for question in of_kind("shared_names"):
        verb, title = asked_verb(question), subject(question)
        namesakes = {
            other
            for other in titles(question) - {title}
            if name_parts(other) & name_parts(title)
            and any(referring(p, verb) for p in about(question, other))
        }
        assert len(namesakes) >= FAMILY - 1


def test_repeated_paragraphs_stand_twice() -> None:
    for question in of_kind("repeated"):
        counts = Counter(question.context)
        own = about(question, subject(question))
        assert all(counts[p] == 2 for p in own)
        assert sum(count == 2 for p, count in counts.items() if p not in own) == REPEATS
        assert max(counts.values()) == 2


def test_the_unanswerable_is_stated_of_others_only() -> None:
    others = 0
    for question in of_kind(UNANSWERABLE):
        assert question.answers == (UNANSWERABLE,)
        verb, own = asked_verb(question), about(question, subject(question))
        assert own
        assert not any(verb in text(p) for p in own)
        others += any(referring(p, verb) for p in question.context)
    assert others > A_KIND / 2


def test_without_the_name_only_the_paragraph_with_the_answer_is_left() -> None:
    for question in of_kind("name_left_out"):
        (left,) = about(question, subject(question))
        assert referring(left, asked_verb(question)) == question.answers[0]
        assert not any(subject(question) in text(paragraph) for paragraph in question.context)
