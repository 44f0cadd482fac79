"""The docs' samples of components over a server run as they stand, but for its address."""

from __future__ import annotations

from typing import Any

import pytest

from fusionrag_integrations import FusionEngine
from tests.remote.loopback import LOOPBACK
from tests.test_docs import BLOCK, ROOT, SERVED

pytestmark = LOOPBACK

ADDRESS = "http://localhost:8000"


@pytest.mark.parametrize("page", ["langchain", "llama_index"])
def test_samples_run(page: str, engine: FusionEngine, base_url: str) -> None:
    (section,) = SERVED.findall((ROOT / "docs" / f"{page}.md").read_text())
    (code,) = [text for language, text in BLOCK.findall(section) if language == "python"]
    assert ADDRESS in code
    namespace: dict[str, Any] = {}
    exec(compile(code.replace(ADDRESS, base_url), page, "exec"), namespace)
    assert str(namespace["answer"])
