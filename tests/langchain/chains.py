"""The chains that people have, over our retriever and models, and what they find of the chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import dynamic_prompt
from langchain_classic.chains import RetrievalQA, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.chains.history_aware_retriever import create_history_aware_retriever
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever, FusionRAGLLM
from tests.conftest import town

WORDS = "Use this context:\n{context}\n\nQuestion: {question}\nAnswer:"
SYSTEM = "Use the given context to answer the question.\n\n{context}"

Chain = Runnable[str, str]
Build = Callable[[FusionEngine, BaseRetriever], Chain]


def join(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def expression(engine: FusionEngine, retriever: BaseRetriever, prompt: Any, model: Any) -> Chain:
    inputs = {"context": retriever | join, "question": RunnablePassthrough()}
    return inputs | prompt | model(engine=engine, max_tokens=12) | StrOutputParser()


def f_string(engine: FusionEngine, retriever: BaseRetriever) -> Chain:
    return expression(engine, retriever, PromptTemplate.from_template(WORDS), FusionRAGLLM)


def chat_prompt(engine: FusionEngine, retriever: BaseRetriever) -> Chain:
    prompt = ChatPromptTemplate.from_messages([("system", SYSTEM), ("human", "{question}")])
    return expression(engine, retriever, prompt, ChatFusionRAG)


def template(left: str, right: str, template_format: Any) -> Build:
    """Variables between other marks, filled in by another engine."""
    words = WORDS.replace("{", left).replace("}", right)
    prompt = PromptTemplate.from_template(words, template_format=template_format)
    return lambda engine, retriever: expression(engine, retriever, prompt, FusionRAGLLM)


def stuff(engine: FusionEngine, retriever: BaseRetriever) -> Chain:
    return retrieval_chain(engine, retriever)


def stuff_with_document_prompt(engine: FusionEngine, retriever: BaseRetriever) -> Chain:
    document_prompt = PromptTemplate.from_template("[{title}] {page_content} (end)")
    return retrieval_chain(
        engine, retriever, document_prompt=document_prompt, document_separator="\n---\n"
    )


def retrieval_chain(engine: FusionEngine, retriever: BaseRetriever, **arguments: Any) -> Chain:
    prompt = ChatPromptTemplate.from_messages([("system", SYSTEM), ("human", "{input}")])
    chat = ChatFusionRAG(engine=engine, max_tokens=12)
    answer = create_stuff_documents_chain(chat, prompt, **arguments)
    chain = create_retrieval_chain(retriever, answer)
    return {"input": RunnablePassthrough()} | chain | (lambda result: result["answer"])


def with_history(engine: FusionEngine, retriever: BaseRetriever) -> Chain:
    """The history makes another question of it, so the model is asked twice."""
    chat = ChatFusionRAG(engine=engine, max_tokens=12)
    history = [HumanMessage("Which towns are there?"), AIMessage("There are four.")]
    rewrite = ChatPromptTemplate.from_messages(
        [MessagesPlaceholder("history"), ("human", "{input}\nSay it as a question by itself.")]
    )
    prompt = ChatPromptTemplate.from_messages(
        [("system", SYSTEM), MessagesPlaceholder("history"), ("human", "{input}")]
    )
    # What this model makes of the question is noise, so the search is for the original.
    original = RunnableLambda(lambda _: retriever.invoke("Where is house 15 of town number 2?"))
    aware = create_history_aware_retriever(chat, original, rewrite)
    chain = create_retrieval_chain(aware, create_stuff_documents_chain(chat, prompt))
    inputs = RunnableLambda(lambda question: {"input": question, "history": history})
    return inputs | chain | (lambda result: result["answer"])


def retrieval_qa(kind: str, **prompts: Any) -> Build:
    def build(engine: FusionEngine, retriever: BaseRetriever) -> Chain:
        llm = FusionRAGLLM(engine=engine, max_tokens=12)
        chain = RetrievalQA.from_chain_type(
            llm=llm, retriever=retriever, chain_type=kind, chain_type_kwargs=prompts
        )
        inputs = RunnableLambda(lambda question: {"query": question})
        return inputs | chain | (lambda result: result["result"])

    return build


def agent(engine: FusionEngine, retriever: BaseRetriever) -> Chain:
    @dynamic_prompt
    def with_context(request: Any) -> str:
        question = str(request.state["messages"][-1].text)
        return SYSTEM.format(context=join(retriever.invoke(question)))

    chat = ChatFusionRAG(engine=engine, max_tokens=12)
    chain = create_agent(chat, tools=[], middleware=[with_context])
    inputs = RunnableLambda(lambda question: {"messages": [("human", question)]})
    return inputs | chain | (lambda state: str(state["messages"][-1].text))


# LangChain's own prompt for this has examples that are longer than a small model's context.
COMBINE = PromptTemplate.from_template("{summaries}\n\nQuestion: {question}\nAnswer:")

CHAINS: dict[str, Build] = {
    "LCEL, f-string template": f_string,
    "LCEL, chat template, context in the system message": chat_prompt,
    "LCEL, jinja2 template": template("{{ ", " }}", "jinja2"),
    "LCEL, mustache template `{{context}}`": template("{{", "}}", "mustache"),
    "LCEL, mustache template `{{{context}}}`": template("{{{", "}}}", "mustache"),
    "create_retrieval_chain, create_stuff_documents_chain": stuff,
    "the same, with a document prompt and a separator": stuff_with_document_prompt,
    "create_history_aware_retriever": with_history,
    "RetrievalQA, stuff": retrieval_qa("stuff"),
    "RetrievalQA, map_reduce": retrieval_qa("map_reduce", combine_prompt=COMBINE),
    "RetrievalQA, refine": retrieval_qa("refine"),
    "create_agent, context by dynamic_prompt": agent,
}


class Watch(BaseCallbackHandler):
    """Keeps the report of each answer that the model gave."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        for [generation] in response.generations:
            if isinstance(generation, ChatGeneration):
                self.reports.append(generation.message.response_metadata)
            else:
                self.reports.append(generation.generation_info or {})

    def found_tokens(self) -> int:
        """Chunk tokens that were found, over all answers: reused or recomputed."""
        usages = [report["usage"] for report in self.reports]
        before = sum(usage["prefix_tokens"] + usage["history_tokens"] for usage in usages)
        found = sum(usage["reused_tokens"] + usage["recomputed_tokens"] for usage in usages)
        return int(found - before)


KINDS = {
    "one paragraph": [Document(text) for i in range(3) for text in town(i).text.split("\n\n")],
    "several paragraphs": [Document(town(i).text) for i in range(10, 13)],
    "markup": [
        Document(town(i).text.replace("the old bridge", "the <b>old & new</b> bridge"))
        for i in range(20, 23)
    ],
}


def shares(engine: FusionEngine) -> list[tuple[str, str, float]]:
    """Chain, kind of chunk, and the share of the chunks' tokens that the model found."""
    retrievers = {
        kind: FusionKVRetriever.from_documents(documents, engine=engine, scope=kind, k=3)
        for kind, documents in KINDS.items()
    }
    return [
        (name, kind, found_share(engine, retriever, build, "Where is house 15?"))
        for name, build in CHAINS.items()
        for kind, retriever in retrievers.items()
    ]


def found_share(
    engine: FusionEngine, retriever: BaseRetriever, build: Build, question: str
) -> float:
    """The share of the retrieved chunks' tokens that the model found in its prompts."""
    watch = Watch()
    build(engine, retriever).invoke(question, config={"callbacks": [watch]})
    texts = [document.page_content for document in retriever.invoke(question)]
    return watch.found_tokens() / sum(len(engine.encode(text.strip())) for text in texts)
