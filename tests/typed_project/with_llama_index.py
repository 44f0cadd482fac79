"""A program with LlamaIndex: a query engine, a chat engine, a pipeline, and the model alone."""

# ruff: noqa: T201
from __future__ import annotations

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import BaseNode, NodeWithScore, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.llama_index import (
    FusionKVRetriever,
    FusionKVTransform,
    FusionRAGLLM,
    to_documents,
)

NODES: list[BaseNode] = [TextNode(id_="tia", text="Tia Rundo was born in Pelfield.")]


def queried(engine: FusionEngine, question: str) -> str:
    retriever = FusionKVRetriever.from_nodes(NODES, engine=engine, similarity_top_k=4)
    llm = FusionRAGLLM(engine=engine, ratio=0.3, max_tokens=16, stop=["\n"])
    synthesizer = get_response_synthesizer(llm=llm, prompt_helper=llm.prompt_helper())
    query_engine = RetrieverQueryEngine(retriever, response_synthesizer=synthesizer)
    return str(query_engine.query(question))


def chatted(engine: FusionEngine, question: str) -> str:
    filters = MetadataFilters(filters=[MetadataFilter(key="page", value=1)])
    retriever = FusionKVRetriever(engine=engine, scopes=[""], filters=filters)
    chat_engine = ContextChatEngine.from_defaults(retriever, llm=FusionRAGLLM(engine=engine))
    return str(chat_engine.chat(question))


def alone(engine: FusionEngine, prompt: str) -> str:
    llm = FusionRAGLLM(engine=engine)
    for response in llm.stream_complete(prompt, temperature=0.5, seed=1):
        print(response.delta, end="")
    reply = llm.chat([ChatMessage(content=prompt)])
    print(llm.metadata.context_window, llm.to_dict())
    again = FusionRAGLLM.from_dict(llm.to_dict(), engine=engine)
    return llm.complete(prompt, ratio=0.5).text + (reply.message.content or again.model_name)


async def streamed(engine: FusionEngine, question: str) -> list[str]:
    llm = FusionRAGLLM(engine=engine)
    pieces = [response.delta or "" async for response in await llm.astream_complete(question)]
    found: list[NodeWithScore] = await FusionKVRetriever(engine=engine).aretrieve(question)
    return [*pieces, *(node.text for node in found), (await llm.acomplete(question)).text]


def main(engine: FusionEngine) -> None:
    engine.ingest(to_documents(NODES))
    pipeline = IngestionPipeline(transformations=[FusionKVTransform(engine=engine, scope="board")])
    pipeline.run(nodes=NODES)
    print(queried(engine, "Where was Tia Rundo born?"), chatted(engine, "Who?"), alone(engine, "?"))
