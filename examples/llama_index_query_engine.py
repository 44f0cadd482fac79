"""A LlamaIndex query engine over fused KV: `python examples/llama_index_query_engine.py`."""

from pathlib import Path
from tempfile import TemporaryDirectory

from llama_index.core.query_engine import RetrieverQueryEngine

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.demo import smollm2
from fusionrag_integrations.documents import read_documents
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionRAGLLM

ARTICLES = Path(__file__).parent / "wikipedia"
QUESTIONS = (
    "On which date did Nikola Tesla die?",
    "In which year was the Grainger Market opened?",
)


def main() -> None:
    with TemporaryDirectory() as directory:
        engine = FusionEngine.from_pretrained(smollm2(), store=directory)
        engine.ingest(read_documents([ARTICLES]))
        retriever = FusionKVRetriever(engine=engine, similarity_top_k=2)
        llm = FusionRAGLLM(engine=engine)
        query_engine = RetrieverQueryEngine.from_args(retriever=retriever, llm=llm)
        queried, streamed = QUESTIONS
        print(queried, query_engine.query(queried))
        streaming = RetrieverQueryEngine.from_args(retriever=retriever, llm=llm, streaming=True)
        print(streamed, end=" ", flush=True)
        streaming.query(streamed).print_response_stream()
        print()


if __name__ == "__main__":
    main()
