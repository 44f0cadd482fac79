"""A LlamaIndex query engine over fused KV: `python examples/llama_index_query_engine.py`."""

from pathlib import Path
from tempfile import TemporaryDirectory

from llama_index.core.query_engine import RetrieverQueryEngine

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.documents import read_documents
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionRAGLLM

NOTES = Path(__file__).parent / "notes"
QUESTIONS = (
    "Brere Works keeps its archive in which place?",
    "Brere Works was founded by whom?",
    "Ainpa Harp was copied by which company?",
)


def main() -> None:
    with TemporaryDirectory() as directory:
        engine = FusionEngine.from_pretrained(MODEL_DIR, store=directory, chunk_tokens=100)
        engine.ingest(read_documents([NOTES]))
        retriever = FusionKVRetriever(engine=engine, similarity_top_k=4)
        llm = FusionRAGLLM(engine=engine)
        query_engine = RetrieverQueryEngine.from_args(retriever=retriever, llm=llm)
        for question in QUESTIONS:
            print(question, query_engine.query(question))
        streaming = RetrieverQueryEngine.from_args(retriever=retriever, llm=llm, streaming=True)
        streaming.query(QUESTIONS[0]).print_response_stream()
        print()


if __name__ == "__main__":
    main()
