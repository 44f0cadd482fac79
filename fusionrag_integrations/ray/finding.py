"""Which KV a request needs, found in its body by the chunks' texts. Loads no model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from fusionrag_integrations.prompt.assembled import TextMatch
from fusionrag_integrations.serving.catalog_matcher import CatalogMatcher
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.generations import directory_of
from fusionrag_integrations.store.objects.opening import is_url
from fusionrag_integrations.store.opening import open_catalog
from fusionrag_integrations.store.published.working_copy import WorkingCopy
from fusionrag_integrations.support.beating import Beating
from fusionrag_integrations.support.threads import Closable


class KVFinder(Closable):
    """Finds the chunks of one store in requests. Thread-safe."""

    def __init__(self, catalog: Catalog, opened: ExitStack) -> None:
        """opened: what is closed with this, the catalog among it."""
        self._opened = opened
        self._matcher = CatalogMatcher(catalog, catalog.chunks.readable)
        self._matcher.find("", (), None)  # texts are read now, not when the first request comes

    @classmethod
    def open(cls, store: str, refresh: float = 60.0) -> KVFinder:
        """Of the store at a path, or at a URL, at whose newest version it is looked so often.

        refresh: in seconds. Raises as `Store.open`.
        """
        with ExitStack() as opened:
            if not is_url(store):
                catalog = opened.enter_context(open_catalog(directory_of(store)))
            else:
                copy = opened.enter_context(WorkingCopy(store))
                catalog = opened.enter_context(open_catalog(copy.path))
                opened.enter_context(
                    Beating("fusionrag-refresh", refresh, lambda: copy.follow(catalog))
                )
            return cls(catalog, opened.pop_all())

    def needed(self, body: bytes, scopes: Sequence[str] | None) -> dict[str, int]:
        """Keys of the KV that a request reads, with tokens of each; none where it reads none.

        body: a request for an answer or a look-up of texts, which needn't be a valid one. scopes:
        those that it may use. Raises `StoreError` where the catalog can't be read.
        """
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            return {}
        if not isinstance(given, dict) or given.get("kv") == "none":
            return {}
        text = "\n\n".join(_texts(given))
        matches = self._matcher.find(text, (), scopes) if text else []
        fused = given.get("kv") != "isolated"
        return dict(_key(match, fused and number > 0) for number, match in enumerate(matches))

    def close(self) -> None:
        """Close the catalog. May be called again."""
        self._opened.close()


def _key(match: TextMatch, fused: bool) -> tuple[str, int]:
    """As requests read it: the first chunk of a prompt isolated, others fused where they are."""
    record = match.record
    key = record.fused_key if fused and match.variant == "fused" else ""
    return key or record.isolated_key, len(record.encoded.token_ids)


def _texts(given: dict[str, Any]) -> Iterator[str]:
    """All strings in which a body may hold chunks."""
    yield from _strings(given.get("prompt"))
    for one in _listed(given.get("messages")) + _listed(given.get("texts")):
        if isinstance(one, dict):
            yield from _strings(one.get("content"))
            yield from _strings(one.get("text"))


def _strings(value: Any) -> Iterator[str]:
    """A string, those of a list, and the text of parts of a message."""
    for one in value if isinstance(value, list) else [value]:
        text = one.get("text") if isinstance(one, dict) else one
        if isinstance(text, str):
            yield text


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
