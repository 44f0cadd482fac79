"""A LangChain chain over fused KV: `python examples/langchain_chain.py`."""

from pathlib import Path
from tempfile import TemporaryDirectory

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.documents import read_documents
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever

NOTES = Path(__file__).parent / "notes"
QUESTIONS = (
    "Brere Works keeps its archive in which place?",
    "Brere Works was founded by whom?",
    "Ainpa Harp was copied by which company?",
)


def join(documents):
    return "\n\n".join(document.page_content for document in documents)


def main() -> None:
    with TemporaryDirectory() as directory:
        engine = FusionEngine.from_pretrained(MODEL_DIR, store=directory, chunk_tokens=100)
        engine.ingest(read_documents([NOTES]))
        retriever = FusionKVRetriever(engine=engine, k=4)
        prompt = ChatPromptTemplate.from_messages(
            [
                ("system", "Answer the question from the context."),
                ("user", "Context:\n{context}\n\nQuestion: {question}\nAnswer:"),
            ]
        )
        answers = (
            {"context": retriever | join, "question": RunnablePassthrough()}
            | prompt
            | ChatFusionRAG(engine=engine)
        )
        chain = answers | StrOutputParser()
        for question in QUESTIONS:
            print(question, end=" ")
            for piece in chain.stream(question):
                print(piece, end="", flush=True)
            print()
        usage = answers.invoke(QUESTIONS[0]).response_metadata["usage"]
        print(
            f"{usage['reused_tokens']} tokens reused, {usage['recomputed_tokens']} recomputed, "
            f"{usage['fresh_tokens']} computed afresh"
        )


if __name__ == "__main__":
    main()
