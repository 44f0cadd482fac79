"""Chunks -> records with their tokens and the key of their KV, for one model."""

from __future__ import annotations

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.keys import isolated_key
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.prompt import encode_chunk


class ChunkEncoder:
    """Encodes the chunks of one store."""

    def __init__(self, model: PlainModel, signature: str, prefix_tokens: int) -> None:
        """signature: of the store's KV records. prefix_tokens: how many the ingest prefix has."""
        self._model = model
        self._signature = signature
        self._prefix_tokens = prefix_tokens

    def record(self, chunk: Chunk) -> ChunkRecord:
        """A chunk's record. Raises `InvalidInputError` where the model's context can't hold it."""
        encoded = encode_chunk(self._model.tokenizer, chunk)
        needed = self._prefix_tokens + len(encoded.token_ids)
        if needed > self._model.context_window:
            raise InvalidInputError(
                f"Chunk {chunk.index} of document {chunk.document_id!r} needs {needed} tokens with "
                f"the ingest prefix; the model's context holds {self._model.context_window}. "
                "Make a store with a smaller chunk_tokens."
            )
        key = isolated_key(encoded.token_ids, self._signature, chunk.scope)
        return ChunkRecord(encoded, key)
