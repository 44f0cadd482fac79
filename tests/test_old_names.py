"""What was renamed can be used under its old name for one version, and says so."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

import fusionrag_integrations
from fusionrag_integrations import FusionEngine, Store
from fusionrag_integrations.langchain import FusionKVRetriever
from fusionrag_integrations.store.verify import Problem
from tests.conftest import town

# Every path that the documentation has named.
PATHS = {
    "answer": ["Explanation", "Fallback"],
    "check": ["CheckReport", "CheckRow", "DiskUse", "Estimate", "estimate_ingest"],
    "corpus": ["Corpus", "KV_DIRECTORY", "document_order"],
    "demo": ["CHUNK_TOKENS", "CORPUS_PATH", "MODEL_DIR", "QUESTIONS_PATH", "smollm2"],
    "documents": ["read_documents"],
    "embedding": ["Embedder"],
    "errors": ["FusionRAGError", "StoreMismatchError", "UnsupportedModelError"],
    "langchain": ["ChatFusionRAG", "FusionKVRetriever", "FusionRAGLLM", "to_documents"],
    "llama_index": ["FusionKVRetriever", "FusionKVTransform", "FusionRAGLLM", "to_documents"],
    "model": ["CausalModel"],
    "neighbours": ["Candidates", "NeighbourPolicy", "Neighbours"],
    "options": ["AnswerOptions"],
    "prompt": ["ingest_prefix", "question_prompt"],
    "repair": ["Problem", "find_damage", "repair"],
    "selectors": ["FusionRAGScorer", "TopScores", "make_selector", "selector_names"],
    "store": ["Budgets", "StoreMetrics", "TierMetrics"],
    "types": [
        *("AnswerSettings", "AssembledPrompt", "Calibration", "Chunk", "Document", "DocumentKey"),
        *("KVHandle", "LayerView", "Message", "Passage", "Probe", "SearchHit", "Selector", "Span"),
        *("TTFTBreakdown", "TokenSelection", "Usage"),
    ],
}


@pytest.mark.parametrize("module", PATHS)
def test_documented_import_paths_stay(module: str) -> None:
    found = import_module(f"fusionrag_integrations.{module}")
    assert [name for name in PATHS[module] if not hasattr(found, name)] == []


@pytest.mark.filterwarnings("default")
def test_a_corpus_is_a_store() -> None:
    with pytest.warns(DeprecationWarning, match="Corpus is called Store now"):
        assert fusionrag_integrations.Corpus is Store


@pytest.mark.filterwarnings("default")
def test_old_names_of_an_engine(model_dir: Path, tmp_path: Path) -> None:
    with FusionEngine.from_pretrained(model_dir, store=tmp_path / "store") as engine:
        with pytest.warns(DeprecationWarning, match="corpus is called store now"):
            assert engine.corpus is engine.store
        with pytest.warns(DeprecationWarning, match="words_tools is called supports_tools now"):
            assert engine.words_tools == engine.supports_tools
        with pytest.warns(DeprecationWarning, match="offer is called register_texts now"):
            engine.offer([town(0).text])


@pytest.mark.filterwarnings("default")
def test_an_old_name_of_a_retriever(model_dir: Path, tmp_path: Path) -> None:
    with FusionEngine.from_pretrained(model_dir, store=tmp_path / "store") as engine:
        retriever = FusionKVRetriever(store=engine.store)
        with pytest.warns(DeprecationWarning, match="corpus is called store now"):
            assert retriever.corpus is engine.store


@pytest.mark.filterwarnings("default")
def test_an_old_name_of_a_problem() -> None:
    problem = Problem("kv", Path("x"), "KVMissingError", "It is missing.", fixed=True)
    with pytest.warns(DeprecationWarning, match="mended is called fixed now"):
        assert problem.mended
