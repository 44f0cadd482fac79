"""How much of the retrieved chunks every response mode lets the model find."""

from __future__ import annotations

from llama_index.core.response_synthesizers import get_response_synthesizer

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionRAGLLM
from tests.llama_index.helpers import MAX_TOKENS, QUESTION, Call, found_share, recorded, town_nodes

MODES = (
    "compact",
    "refine",
    "tree_summarize",
    "accumulate",
    "compact_accumulate",
    "simple_summarize",
)
KINDS = {
    "one paragraph": town_nodes(range(3)),
    "several paragraphs": town_nodes(range(10, 13), paragraphs=3),
}


def ingest_kinds(engine: FusionEngine) -> None:
    """Every kind of chunk, each in a scope of its name."""
    for kind, nodes in KINDS.items():
        FusionKVRetriever.from_nodes(nodes, engine=engine, scope=kind)


def ask(engine: FusionEngine, mode: str, kind: str) -> tuple[list[Call], list[str]]:
    """The model's calls for one question, and the texts of the chunks that were retrieved."""
    nodes = FusionKVRetriever(engine=engine, scopes=[kind], similarity_top_k=4).retrieve(QUESTION)
    llm = FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS)
    synthesizer = get_response_synthesizer(
        llm=llm,
        response_mode=mode,  # type: ignore[arg-type]
        prompt_helper=llm.prompt_helper(),
    )
    with recorded(engine) as calls:
        synthesizer.synthesize(QUESTION, nodes)
    return calls, [node.text for node in nodes]


def shares(engine: FusionEngine) -> list[tuple[str, str, float]]:
    """Response mode, kind of chunk, and the share of the chunks' tokens that the model found.

    Ingests the chunks of every kind first.
    """
    ingest_kinds(engine)
    return [
        (mode, kind, found_share(engine, *ask(engine, mode, kind)))
        for mode in MODES
        for kind in KINDS
    ]
