"""The tables of what is reused, in docs/langchain.md and docs/llama_index.md, measured again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.demo import MODEL_DIR
from tests.langchain import chains
from tests.llama_index import modes

DOCS = Path(__file__).parent.parent / "docs"
Shares = Callable[[FusionEngine], list[tuple[str, str, float]]]


def table(shares: list[tuple[str, str, float]]) -> list[str]:
    """Markdown: one line a chain or mode, one column a kind of chunk."""
    rows: dict[str, dict[str, float]] = {}
    for name, kind, share in shares:
        rows.setdefault(name, {})[kind] = share
    kinds = next(iter(rows.values()))
    return [
        "| | " + " | ".join(kinds) + " |",
        "| --- |" + " --- |" * len(kinds),
        *(
            f"| {n} | " + " | ".join(f"{s:.0%}" for s in row.values()) + " |"
            for n, row in rows.items()
        ),
    ]


@pytest.mark.parametrize(
    ("page", "shares"), [("langchain.md", chains.shares), ("llama_index.md", modes.shares)]
)
def test_a_pages_table_is_what_is_measured(page: str, shares: Shares, tmp_path: Path) -> None:
    engine = FusionEngine.from_pretrained(MODEL_DIR, store=tmp_path / "store")
    text = (DOCS / page).read_text()
    shown = text[text.index("<!-- reuse-table -->") : text.index("<!-- /reuse-table -->")]
    assert shown.split("\n")[1:-1] == table(shares(engine))
