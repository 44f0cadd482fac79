"""Chunks -> records with their tokens and the key of their KV, for one model."""

from __future__ import annotations

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.keys import isolated_key
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.prompt import encode_chunk


class ChunkEncoder:
    """Encodes the chunks of one store."""

    def __init__(self, facts: ModelFacts, signature: str) -> None:
        """signature: of the store's KV records."""
        self._facts = facts
        self._signature = signature

    def record(self, chunk: Chunk) -> ChunkRecord:
        """A chunk's record. Raises `InvalidInputError` where the model's context can't hold it."""
        encoded = encode_chunk(self._facts.tokenizer, chunk)
        needed = len(self._facts.prefix_ids) + len(encoded.token_ids)
        if needed > self._facts.context_window:
            raise InvalidInputError(
                f"Chunk {chunk.index} of document {chunk.document_id!r} needs {needed} tokens with "
                f"the ingest prefix; the model's context holds {self._facts.context_window}. "
                "Make a store with a smaller chunk_tokens."
            )
        key = isolated_key(encoded.token_ids, self._signature, chunk.scope)
        return ChunkRecord(encoded, key)
