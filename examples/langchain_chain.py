"""A LangChain chain over fused KV: `python examples/langchain_chain.py`."""

from pathlib import Path
from tempfile import TemporaryDirectory

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.demo import smollm2
from fusionrag_integrations.documents import read_documents
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever

ARTICLES = Path(__file__).parent / "wikipedia"
QUESTIONS = (
    "On which date did Nikola Tesla die?",
    "In which year was the Grainger Market opened?",
)


def join(documents):
    return "\n\n".join(document.page_content for document in documents)


def main() -> None:
    with TemporaryDirectory() as directory:
        engine = FusionEngine.from_pretrained(smollm2(), store=directory)
        engine.ingest(read_documents([ARTICLES]))
        retriever = FusionKVRetriever(engine=engine, k=2)
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
        streamed, invoked = QUESTIONS
        print(streamed, end=" ")
        for piece in (answers | StrOutputParser()).stream(streamed):
            print(piece, end="", flush=True)
        print()
        message = answers.invoke(invoked)
        print(invoked, message.text)
        usage = message.response_metadata["usage"]
        print(
            f"{usage['reused_tokens']} tokens reused, {usage['recomputed_tokens']} recomputed, "
            f"{usage['fresh_tokens']} computed afresh"
        )


if __name__ == "__main__":
    main()
