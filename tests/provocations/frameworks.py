"""Retrievers and frameworks."""

from __future__ import annotations

import pickle
from typing import Any

from langchain_core.messages import ChatMessage as LangChainMessage
from langchain_core.messages import HumanMessage
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core.llms import ChatMessage, ImageBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import Node
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

import fusionrag_integrations.langchain as lc
import fusionrag_integrations.llama_index as li
from tests.embeddings import LangChainLexical
from tests.provocations.world import Provoked, World

provoked = Provoked()
PAGE_7 = MetadataFilters(filters=[MetadataFilter(key="page", value=7)])
IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]


def retrieve(world: World, **given: Any) -> None:
    li.FusionKVRetriever(engine=world.engine, **given)


@provoked.by("The prompt has ... tokens without any context; the model's context holds ...")
def long_question(world: World) -> None:
    helper = li.FusionRAGLLM(engine=world.engine).prompt_helper()
    helper.repack(PromptTemplate("where is the fox " * 1000 + "{context_str}"), ["A text."])


provoked.pairs += [
    (
        "A ... message holds content other than text; give text alone.",
        lambda w: lc.ChatFusionRAG(engine=w.engine).invoke([HumanMessage(IMAGE)]),  # type: ignore[arg-type]
    ),
    (
        "A ... message holds content other than text; give text alone.",
        lambda w: li.FusionRAGLLM(engine=w.engine).chat(
            [ChatMessage(blocks=[ImageBlock(image=b"AA==", image_mimetype="image/png")])]
        ),
    ),
    (
        "A FusionKVRetriever needs either an engine, a store or a server's base_url: ...",
        lambda w: lc.FusionKVRetriever(),
    ),
    (
        "A FusionKVRetriever needs either an engine, a store or a server's base_url: ...",
        lambda w: li.FusionKVRetriever(engine=w.engine, store=w.engine.store),
    ),
]
provoked.each(
    {
        "... can't be given with a retriever of your own; give that one ...": lambda w: (
            lc.FusionKVRetriever(
                engine=w.engine, retriever=lc.FusionKVRetriever(engine=w.engine), k=2
            )
        ),
        "A retriever of your own has no scores here; ask what it searches for them, ...": (
            lambda w: lc.FusionKVRetriever(
                engine=w.engine, retriever=lc.FusionKVRetriever(engine=w.engine)
            ).similarity_search_with_score("Where is the fox?")
        ),
        "A ... can't list its documents; give a langchain_chroma.Chroma, ...": lambda w: (
            lc.FusionKVRetriever.from_chroma(
                InMemoryVectorStore(LangChainLexical()), engine=w.engine
            )
        ),
        "Messages of type ... are not supported; give ... messages.": lambda w: lc.ChatFusionRAG(
            engine=w.engine
        ).invoke([LangChainMessage(role="critic", content="Where?")]),
        "Messages with the role ... are not supported; give ... messages.": lambda w: (
            li.FusionRAGLLM(engine=w.engine).chat([ChatMessage(role="tool", content="4")])
        ),
        "A ... without text can't be ingested; give nodes of text.": lambda w: li.FusionKVTransform(
            engine=w.engine
        )([Node()]),
        "A ... can't leave its process; run the pipeline without num_workers.": (
            lambda w: pickle.dumps(li.FusionKVTransform(engine=w.engine))
        ),
        "retriever is ...; give a BaseRetriever, or None.": lambda w: retrieve(
            w, retriever=lc.FusionKVRetriever(engine=w.engine)
        ),
        "similarity_top_k is ...; it must be at least 1.": lambda w: retrieve(
            w, similarity_top_k=0
        ),
        "filters is ...; give a MetadataFilters, or None.": lambda w: retrieve(
            w, filters={"page": 7}
        ),
        "filters don't reach another retriever; give them to that one.": lambda w: retrieve(
            w, filters=PAGE_7, retriever=li.FusionKVRetriever(engine=w.engine)
        ),
        "Filters joined by ... are not supported; use and, or.": lambda w: retrieve(
            w, filters=MetadataFilters(filters=PAGE_7.filters, condition="not")
        ),
        "The filter operator ... is not supported; use ...": lambda w: retrieve(
            w,
            filters=MetadataFilters(
                filters=[MetadataFilter(key="title", value="x", operator=FilterOperator.TEXT_MATCH)]
            ),
        ),
    }
)
