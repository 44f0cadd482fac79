"""Chunks that begin with indentation are found in prompts, also where a framework has cut it."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.schema import MetadataMode, TextNode

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.langchain import FusionKVRetriever
from fusionrag_integrations.llama_index import FusionKVRetriever as NodeRetriever

CODE = [
    "    def open_the_door(self, key):\n        if key.fits(self.lock):\n"
    "            self.lock.turn(key)\n            return self.door.swing(outwards=True, by=90)",
    "        for bridge in self.bridges:\n            bridge.cross(self.river)\n"
    "            self.crossed.append(bridge.name)\n        return self.crossed[-1]",
]
PLAIN = AnswerSettings(max_tokens=1, ratio=0.0)


def found(engine: FusionEngine, texts: list[str]) -> tuple[int, int]:
    """Chunks that a prompt of these texts reuses, and how many of its tokens."""
    answer = engine.answer("\n\n".join([*texts, "Which name is added?"]), PLAIN)
    return answer.fused_chunks + answer.isolated_chunks, answer.usage.reused_tokens


@pytest.fixture
def coded(engine: FusionEngine) -> FusionEngine:
    documents = [
        LangChainDocument(text, metadata={"source": f"{i}.py"}) for i, text in enumerate(CODE)
    ]
    found = FusionKVRetriever.from_documents(documents, engine=engine).invoke("the bridge")
    assert sorted(document.page_content for document in found) == sorted(CODE)
    return engine


def test_as_given_and_as_a_framework_strips_it(coded: FusionEngine) -> None:
    chunks, whole = found(coded, CODE)
    assert chunks == 2
    chunks, stripped = found(coded, [text.strip() for text in CODE])
    assert chunks == 2
    assert whole >= stripped > 0.8 * whole
    assert found(coded, CODE[:1])[0] == 1
    assert found(coded, [CODE[0].lstrip()])[0] == 1


def test_full_recomputation_of_what_was_cut_is_the_dense_prefill(coded: FusionEngine) -> None:
    prompt = "\n\n".join([*(text.strip() for text in CODE), "Which name is added?"])
    whole = coded.answer(prompt, AnswerSettings(max_tokens=8, selector="all", ratio=1.0))
    assert whole.fused_chunks + whole.isolated_chunks == 2
    assert whole.text == coded.answer(prompt, AnswerSettings(max_tokens=8, kv="none")).text


def test_nodes_keep_theirs_and_are_found(engine: FusionEngine) -> None:
    nodes = [TextNode(text=text, id_=f"n{i}") for i, text in enumerate(CODE)]
    retrieved = NodeRetriever.from_nodes(nodes, engine=engine).retrieve("the bridge")
    assert sorted(node.node.get_content(MetadataMode.NONE) for node in retrieved) == sorted(CODE)
    shown = [node.node.get_content(MetadataMode.LLM) for node in retrieved]
    assert found(engine, shown)[0] == 2


def test_texts_that_differ_in_indentation_alone_are_told_apart(engine: FusionEngine) -> None:
    texts = [CODE[0].lstrip(), CODE[0]]
    documents = [
        LangChainDocument(text, metadata={"source": f"{i}.py"}) for i, text in enumerate(texts)
    ]
    FusionKVRetriever.from_documents(documents, engine=engine)
    for text in texts:
        answer = engine.answer(f"Read this:\n\n{text}\n\nWhat is turned?", PLAIN)
        assert answer.trace is not None
        assert [p.chunk.text for p in answer.trace.passages() if p.chunk] == [text]
