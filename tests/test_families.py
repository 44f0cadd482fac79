"""What is said of model types: that they are tested, and with what."""

from __future__ import annotations

from fusionrag_integrations.execution.hf.supported import TESTED_MODEL_TYPES
from tests.families import PAGE, PUBLISHED, rewritten
from tests.tiny_models import FACTORIES, build


def test_the_tested_types_are_those_of_the_tiny_models() -> None:
    assert {build(name).config.model_type for name in FACTORIES} == TESTED_MODEL_TYPES
    assert PUBLISHED.keys() == TESTED_MODEL_TYPES


def test_the_page_has_the_table_as_it_is() -> None:
    page = PAGE.read_text()
    assert rewritten(page) == page, "run `python -m tests.families`"
