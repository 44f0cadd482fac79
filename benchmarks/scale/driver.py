"""What an ingest does in its driver: texts, embeddings, index and catalog, without the model."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fusionrag_integrations.bench.machine import where_and_when
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.documents.types import Document
from fusionrag_integrations.engine import FusionEngine

PARAGRAPHS = 4  # of a document, a chunk each
WORDS = 90  # of a paragraph


def measure_driver(chunks: int, seed: int = 0) -> dict[str, Any]:
    """Milliseconds a chunk of an ingest that computes no KV, with the built-in embedding."""
    draw = np.random.default_rng(seed)

    def paragraph() -> str:
        return " ".join(f"word{number}" for number in draw.integers(5000, size=WORDS))

    documents = [
        Document(id=str(number), text="\n\n".join(paragraph() for _ in range(PARAGRAPHS)))
        for number in range(-(-chunks // PARAGRAPHS))
    ]
    with (
        TemporaryDirectory(prefix="fusionrag-driver-") as directory,
        FusionEngine.from_pretrained(
            MODEL_DIR, store=Path(directory) / "store", kv="none"
        ) as engine,
    ):
        report = engine.ingest(documents)
    return where_and_when() | {
        "chunks": report.chunks,
        "ms_a_chunk": 1e3 * report.seconds / report.chunks,
    }
