"""Fills an index from the catalog's vectors."""

from __future__ import annotations

from collections.abc import Sequence

from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.vector_index.base import VectorIndex


def restore_vectors(catalog: Catalog, index: VectorIndex, chunk_ids: Sequence[str]) -> list[Chunk]:
    """Add chunks to an index with their vectors from the catalog; returns those without one."""
    vectors = catalog.vectors.of(chunk_ids)
    chunks = [record.chunk for record in catalog.chunks.readable(chunk_ids).values()]
    known = [chunk for chunk in chunks if chunk.id in vectors]
    index.add(known, [vectors[chunk.id] for chunk in known])
    return [chunk for chunk in chunks if chunk.id not in vectors]
