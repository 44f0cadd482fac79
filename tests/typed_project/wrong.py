"""Mistakes that a type checker finds: each comment is the kind of error that it tells."""

from __future__ import annotations

from fusionrag_integrations import AnswerSettings, Document, FusionEngine, langchain, llama_index


def engine_api(engine: FusionEngine) -> None:
    FusionEngine.from_pretrained("model", store=1)  # arg-type
    FusionEngine.from_pretrained("model")  # call-arg
    FusionEngine.from_pretrained("model", store="store", kv_format="int3")  # arg-type
    engine.ingest(["a text"])  # list-item
    engine.ingest([Document(id=7)])  # arg-type
    engine.answer("Who?", AnswerSettings(kv="fast"))  # arg-type
    engine.answer("Who?", AnswerSettings(raito=0.3))  # call-arg
    engine.answer("Who?").explian()  # attr-defined


def with_langchain(engine: FusionEngine) -> None:
    langchain.FusionRAGLLM(base_url=8000)  # arg-type
    langchain.FusionRAGLLM(engine=3)  # arg-type
    langchain.ChatFusionRAG(engine=engine, ratio="much")  # arg-type
    langchain.FusionKVRetriever(engine=engine, search_type="best")  # arg-type
    langchain.FusionRAGLLM(engine=engine).invoke("Who?").pretty_print()  # attr-defined


def with_llama_index(engine: FusionEngine) -> None:
    llama_index.FusionRAGLLM(base_url=8000)  # arg-type
    llama_index.FusionRAGLLM(engine=engine, stop="end")  # arg-type
    llama_index.FusionKVRetriever(engine=engine, k=3)  # call-arg
    llama_index.FusionRAGLLM(engine=engine).complete("Who?").pretty_print()  # attr-defined
