"""The examples run as they stand and print what they promise."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from llama_index.core.instrumentation import get_dispatcher
from transformers import Qwen3Config, Qwen3ForCausalLM

from fusionrag_integrations.demo.real_text import PARAGRAPHS_PATH
from fusionrag_integrations.documents.readers import read_documents
from tests.tiny_models import COMMON, heads
from tests.tiny_tokenizers import byte_level_tokenizer

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PASSAGES = ROOT / "tests" / "data" / "hotpotqa_5.jsonl"


def run_here(name: str, *arguments: object) -> None:
    """Run an example in this process; imports take most of the time that a new one needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        patch.syspath_prepend(EXAMPLES)
        patch.setattr(get_dispatcher(), "event_handlers", [])  # an example adds its own
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.parametrize("name", ["langchain_chain.py", "llama_index_query_engine.py"])
@pytest.mark.usefixtures("smollm2_loaded")
def test_a_pipeline_answers_from_the_articles(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(name)
    printed = capsys.readouterr().out
    for answer in ("7 January 1943", "1835"):
        assert answer in printed


def test_the_articles_are_the_packages_paragraphs() -> None:
    packaged = {(d.title, d.text) for d in read_documents([PARAGRAPHS_PATH])}
    articles = list(read_documents([EXAMPLES / "wikipedia"]))
    assert len(articles) == 3
    for article in articles:
        paragraphs = article.text.strip().split("\n\n")
        assert {(article.title, text) for text in paragraphs} <= packaged


@pytest.fixture
def qwen3_dir(tmp_path: Path) -> Path:
    """A random Qwen3 with a tokenizer that knows the passages' words, as real ones do."""
    rows = [json.loads(line) for line in PASSAGES.read_text().splitlines()]
    texts = tuple(passage["text"] for row in rows for passage in row["passages"])
    tokenizer = byte_level_tokenizer(chat=True, training=texts, vocabulary=3000)
    config = COMMON | {"vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**config, **heads(4, 2, head_dim=32)))
    model.save_pretrained(tmp_path / "qwen3")
    tokenizer.save_pretrained(tmp_path / "qwen3")
    return tmp_path / "qwen3"


@pytest.mark.slow
def test_real_passages_are_taken_from_the_store(
    qwen3_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*more: object) -> dict[str, float]:
        where = ("--store", tmp_path / "store", "--model", qwen3_dir)
        run_here("real_passages.py", PASSAGES, *where, *more)
        found: dict[str, float] = json.loads(capsys.readouterr().out)
        return found

    first = run()
    assert first["isolated_computed"] == first["chunks"] >= 50
    assert first["recall_at_5"] >= 0.7
    assert first["langchain_share_from_store"] >= 0.95
    assert first["llama_index_share_from_store"] >= 0.95
    again = run("--limit", 1)
    assert again["isolated_computed"] == again["fused_computed"] == 0
