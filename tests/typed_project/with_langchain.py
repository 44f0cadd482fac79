"""A program with LangChain: a chain, a stream, a chat model with tools, and structured output."""

# ruff: noqa: T201
from __future__ import annotations

from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.tools import tool
from pydantic import BaseModel

from fusionrag_integrations import FusionEngine, KVHandle
from fusionrag_integrations.langchain import (
    ChatFusionRAG,
    FusionKVRetriever,
    FusionRAGLLM,
    to_documents,
)

SPLITS = [Document("Tia Rundo was born in Pelfield.", metadata={"source": "tia.txt"})]


class Birth(BaseModel):
    """Where somebody was born."""

    place: str


@tool
def distance(place: str) -> int:
    """How far away a place is."""
    return len(place)


def join(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def chain_of(engine: FusionEngine) -> Runnable[str, str]:
    retriever = FusionKVRetriever.from_documents(SPLITS, engine=engine, k=4)
    prompt = PromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}\nAnswer:")
    llm = FusionRAGLLM(engine=engine, ratio=0.15, max_tokens=16, stop=["\n"])
    inputs: Runnable[str, dict[str, str]] = RunnablePassthrough[str]() | {
        "context": retriever | join,
        "question": RunnablePassthrough[str](),
    }
    return inputs | prompt | llm.bind(seed=1) | StrOutputParser()


def chatted(engine: FusionEngine, question: str) -> str:
    chat = ChatFusionRAG(engine=engine, temperature=0.5, top_p=0.9, scopes=["board"])
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    reply = (prompt | chat).invoke({"question": question})
    usage = reply.usage_metadata
    if usage is not None:
        print(usage["total_tokens"], usage.get("input_token_details"))
    for chunk in chat.stream([SystemMessage("Be brief."), HumanMessage(question)]):
        print(chunk.text, end="")
    calls = chat.bind_tools([distance], tool_choice="any").invoke(question).tool_calls
    birth = chat.with_structured_output(Birth).invoke(question)
    return f"{reply.text} {calls} {birth} {chat.get_num_tokens(question)}"


async def batched(engine: FusionEngine, question: str) -> list[str]:
    llm = FusionRAGLLM(engine=engine)
    async for piece in llm.astream(question):
        print(piece, end="")
    return await llm.abatch([question, "And who plays the cello?"])


def main(engine: FusionEngine) -> None:
    engine.ingest(to_documents(SPLITS, scope="board"))
    chain = chain_of(engine)
    print(chain.invoke("Where was Tia Rundo born?"), chatted(engine, "Who plays the cello?"))
    found = FusionKVRetriever(engine=engine, filter={"page": 1}, search_type="mmr").invoke("Tia")
    print([KVHandle.from_metadata(document.metadata) for document in found])
    print(FusionKVRetriever.from_store("my-store", k=2).k)
