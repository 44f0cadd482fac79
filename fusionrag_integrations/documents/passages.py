"""Passages split elsewhere -> one document per source."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from fusionrag_integrations.documents.types import Document, Passage

logger = logging.getLogger(__name__)


def group_passages(passages: Iterable[tuple[str, Passage]], scope: str) -> list[Document]:
    """One document per source, of its passages in the order given.

    passages: each with its source; those without text, such as empty pages, are skipped and logged.
    A document's title is the first one in its passages' metadata.
    """
    by_source: dict[str, list[Passage]] = {}
    empty: Counter[str] = Counter()
    for source, passage in passages:
        of_source = by_source.setdefault(source, [])
        if passage.text.strip():
            of_source.append(passage)
        else:
            empty[source] += 1
    if empty:
        logger.warning(
            "%d passages without text are passed over, of %d sources, %r the first of them.",
            *(empty.total(), len(empty), next(iter(empty))),
        )
    documents: list[Document] = []
    for source, parts in by_source.items():
        titles = (part.metadata.get("title") for part in parts)
        title = next((title for title in titles if title and isinstance(title, str)), "")
        documents.append(Document(source, title=title, scope=scope, passages=tuple(parts)))
    return documents
