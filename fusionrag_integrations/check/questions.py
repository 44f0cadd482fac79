"""Questions made from a store's own chunks.

They need no right answers, since reuse is compared with full attention's answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fusionrag_integrations.documents.chunking import first_sentence
from fusionrag_integrations.documents.handles import KVHandle, SearchHit, document_order
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.prompt import encode, question_as_prompt
from fusionrag_integrations.prompt.found import MIN_PREFIX
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.store.store import Store

CHUNKS = 5  # of a prompt, if as many fit
LEAST_SCORE = 1e-6  # of a hit: anything lower is a rounding error


@dataclass(frozen=True, slots=True)
class StoreQuestion:
    """A prompt over chunks that the store's own retriever finds for it, all of one scope."""

    question: str
    prompt: Prompt
    handles: tuple[KVHandle, ...]
    scope: str


def store_questions(
    model: CausalModel, store: Store, count: int, max_tokens: int
) -> list[StoreQuestion]:
    """At most `count` questions, about chunks that are spread evenly over the store; reproducible.

    max_tokens: room for the answer. Raises `InvalidInputError` for a store without chunks, and if
    the model's context is too short.
    """
    ids = store.catalog.chunks.ids()
    if not ids:
        raise InvalidInputError(
            f"The store at {store.path} holds no chunks; index documents first."
        )
    many = min(count, len(ids))
    spread = [ids[number * len(ids) // many] for number in range(many)]
    asked: dict[tuple[str, str], StoreQuestion] = {}
    for chunk_id in dict.fromkeys([*spread, *ids]):
        if len(asked) == count:
            break
        chunk = store.catalog.chunks.records([chunk_id])[chunk_id].chunk
        new = (q for q in _wordings(chunk) if (chunk.scope, q) not in asked)
        if question := next(new, None):
            asked[chunk.scope, question] = _over_chunks(model, store, question, chunk, max_tokens)
    return list(asked.values())


def _wordings(chunk: Chunk) -> Iterator[str]:
    """Questions about a chunk, best first; the second one because documents share titles."""
    if chunk.title:
        yield f"What does the text say about {chunk.title}?"
    yield f'What comes after "{_opening(chunk.text)}"?'


def _opening(text: str) -> str:
    """The beginning of a text, too short to be matched as the chunk itself."""
    sentence = first_sentence(text) or text
    most = max(1, min(MIN_PREFIX - 1, len(text) // 2))
    return sentence if len(sentence) <= most else sentence[:most].rsplit(maxsplit=1)[0]


def _over_chunks(
    model: CausalModel, store: Store, question: str, about: Chunk, max_tokens: int
) -> StoreQuestion:
    """The question over as many of its chunks as fit, the nearest first."""
    found = _chunks_for(store, question, about)
    while found:
        ordered = document_order(found)
        prompt = question_as_prompt(model.tokenizer, [hit.chunk.text for hit in ordered], question)
        if len(encode(model.tokenizer, prompt).token_ids) + max_tokens <= model.context_window:
            handles = tuple(hit.handle for hit in ordered)
            return StoreQuestion(question, prompt, handles, about.scope)
        found.pop()
    raise InvalidInputError(
        f"The context of {model.name} holds {model.context_window} tokens: too few for "
        f"one chunk and the question {question!r}."
    )


def _chunks_for(store: Store, question: str, about: Chunk) -> list[SearchHit]:
    """What the retriever finds, then chunks of the document that the question is about.

    Hits that have nothing in common with the question are dropped: a lexical embedding scores most
    of a store alike, so that the choice among them would vary.
    """
    hits = store.search(question, CHUNKS, scopes=[about.scope])
    found = {hit.chunk.id: hit for hit in hits if hit.score > LEAST_SCORE}
    others = [i for i in store.catalog.chunks.ids([about.document]) if i not in found]
    records = store.catalog.chunks.records(others[: CHUNKS - len(found)]).values()
    own = [SearchHit(record.chunk, 0.0, record.handle) for record in records]
    return [*found.values(), *own]
