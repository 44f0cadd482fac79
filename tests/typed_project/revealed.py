"""What mypy sees of our types: each comment is what it reveals."""

from __future__ import annotations

from typing import reveal_type

from llama_index.core.base.llms.types import ChatMessage

from fusionrag_integrations import AnswerSettings, FusionEngine, langchain, llama_index


def engine_api(engine: FusionEngine) -> None:
    reveal_type(FusionEngine.from_pretrained("model", store="store"))  # FusionEngine
    answer = engine.answer("Who?")
    reveal_type(answer)  # Answer
    reveal_type(answer.usage.reused_tokens)  # int
    reveal_type(answer.finish_reason)  # Literal['stop'] | Literal['length']
    reveal_type(engine.stream("Who?"))  # AnswerStream
    reveal_type(list(engine.stream("Who?")))  # list[str]
    reveal_type(engine.encode("Who?"))  # list[int]
    reveal_type(engine.store.search("Who?", 3)[0].score)  # float
    reveal_type(AnswerSettings().stop)  # tuple[str, ...]


def with_langchain(engine: FusionEngine) -> None:
    llm = langchain.FusionRAGLLM(engine=engine)
    chat = langchain.ChatFusionRAG(engine=engine)
    reveal_type(llm.invoke("Who?"))  # str
    reveal_type(llm.batch(["Who?"]))  # list[str]
    reveal_type(llm.ratio)  # float
    reveal_type(chat.invoke("Who?"))  # AIMessage
    reveal_type(chat.bind_tools([]).invoke("Who?"))  # AIMessage
    reveal_type(chat.get_token_ids("Who?"))  # list[int]
    reveal_type(langchain.FusionKVRetriever(engine=engine).invoke("Who?"))  # list[Document]
    reveal_type(langchain.to_documents([]))  # list[Document]


async def with_llama_index(engine: FusionEngine) -> None:
    llm = llama_index.FusionRAGLLM(engine=engine)
    messages = [ChatMessage(content="Who?")]
    reveal_type(llm.complete("Who?"))  # CompletionResponse
    reveal_type(llm.chat(messages))  # ChatResponse
    reveal_type(next(llm.stream_complete("Who?")).delta)  # str | None
    reveal_type(next(llm.stream_chat(messages)))  # ChatResponse
    reveal_type(await llm.acomplete("Who?"))  # CompletionResponse
    reveal_type(await llm.achat(messages))  # ChatResponse
    reveal_type(await anext(await llm.astream_complete("Who?")))  # CompletionResponse
    reveal_type(await anext(await llm.astream_chat(messages)))  # ChatResponse
    reveal_type(llm.metadata)  # LLMMetadata
    retriever = llama_index.FusionKVRetriever(engine=engine)
    reveal_type(retriever.retrieve("Who?"))  # list[NodeWithScore]
    reveal_type(await retriever.aretrieve("Who?"))  # list[NodeWithScore]
    reveal_type(llama_index.FusionKVTransform(engine=engine)([]))  # Sequence[BaseNode]
