"""Questions made from a store's own chunks, where nobody has written any.

They needn't have right answers: what full attention makes of them is what reuse is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fusionrag_integrations.chunking import first_sentence
from fusionrag_integrations.corpus import Corpus, document_order
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.match import MIN_PREFIX
from fusionrag_integrations.model import CausalModel
from fusionrag_integrations.prompt import encode, worded_question
from fusionrag_integrations.types import Chunk, KVHandle, Prompt, SearchHit

CHUNKS = 5  # to a prompt, where as many fit
LEAST_SCORE = 1e-6  # of a hit: what is below is 0 but for rounding


@dataclass(frozen=True, slots=True)
class StoreQuestion:
    """A prompt over chunks that the store's own retriever finds for it, all of one scope."""

    question: str
    prompt: Prompt
    handles: tuple[KVHandle, ...]
    scope: str


def store_questions(
    model: CausalModel, corpus: Corpus, count: int, max_tokens: int
) -> list[StoreQuestion]:
    """At most `count` questions, about chunks that are spread evenly over the store.

    The same store always gives the same ones. max_tokens: room for the answer. Raises
    `InvalidInputError` for a store without chunks, and where the model's context holds too few
    tokens.
    """
    ids = corpus.catalog.chunk_ids()
    if not ids:
        raise InvalidInputError(
            f"The store at {corpus.path} holds no chunks; index documents first."
        )
    many = min(count, len(ids))
    spread = [ids[number * len(ids) // many] for number in range(many)]
    asked: dict[tuple[str, str], StoreQuestion] = {}
    for chunk_id in dict.fromkeys([*spread, *ids]):
        if len(asked) == count:
            break
        chunk = corpus.catalog.records([chunk_id])[chunk_id].chunk
        new = (q for q in _wordings(chunk) if (chunk.scope, q) not in asked)
        if question := next(new, None):
            asked[chunk.scope, question] = _over_chunks(model, corpus, question, chunk, max_tokens)
    return list(asked.values())


def _wordings(chunk: Chunk) -> Iterator[str]:
    """By what a chunk may be asked about, best first: chunks of one document share its title."""
    if chunk.title:
        yield f"What does the text say about {chunk.title}?"
    yield f'What comes after "{_opening(chunk.text)}"?'


def _opening(text: str) -> str:
    """How a text begins: so little of it that it isn't taken for the chunk itself."""
    sentence = first_sentence(text) or text
    most = max(1, min(MIN_PREFIX - 1, len(text) // 2))
    return sentence if len(sentence) <= most else sentence[:most].rsplit(maxsplit=1)[0]


def _over_chunks(
    model: CausalModel, corpus: Corpus, question: str, about: Chunk, max_tokens: int
) -> StoreQuestion:
    """The question over as many of its chunks as fit, the nearest first."""
    found = _chunks_for(corpus, question, about)
    while found:
        ordered = document_order(found)
        prompt = worded_question(model.tokenizer, [hit.chunk.text for hit in ordered], question)
        if len(encode(model.tokenizer, prompt).token_ids) + max_tokens <= model.context_window:
            handles = tuple(hit.handle for hit in ordered)
            return StoreQuestion(question, prompt, handles, about.scope)
        found.pop()
    raise InvalidInputError(
        f"The context of {model.name} holds {model.context_window} tokens: too few for "
        f"one chunk and the question {question!r}."
    )


def _chunks_for(corpus: Corpus, question: str, about: Chunk) -> list[SearchHit]:
    """What the retriever finds, then chunks of the document that the question is about.

    What has nothing in common with the question isn't taken: a lexical embedding finds it alike in
    most of a store, so that it would be others each time.
    """
    hits = corpus.search(question, CHUNKS, scopes=[about.scope])
    found = {hit.chunk.id: hit for hit in hits if hit.score > LEAST_SCORE}
    others = [i for i in corpus.catalog.chunk_ids([about.document]) if i not in found]
    records = corpus.catalog.records(others[: CHUNKS - len(found)]).values()
    own = [SearchHit(record.chunk, 0.0, record.handle) for record in records]
    return [*found.values(), *own]
