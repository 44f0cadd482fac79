"""LlamaIndex's nodes as this package's documents, and handles on nodes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.schema import (
    Document as LlamaIndexDocument,
)
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilters

from fusionrag_integrations.documents.handles import HANDLE_METADATA_KEYS, KVHandle, SearchHit
from fusionrag_integrations.documents.passages import group_passages
from fusionrag_integrations.documents.types import Document, Passage
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.inputs import checked

HIDDEN_KEY = "fusionrag_hidden"  # the entries that the ingested node excluded from prompts, as JSON

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
}
_CONDITIONS = {FilterCondition.AND: "$and", FilterCondition.OR: "$or"}


@checked()
def to_documents(nodes: Iterable[BaseNode], scope: str = "") -> list[Document]:
    """What to ingest: each node is one chunk, as it is.

    Nodes of the same source document (`ref_doc_id`) are one document, named by it, in the order
    given; so that a chunk is fused with the ones before it, and ingesting a source again replaces
    it. A node without a source is a document of its own, by its own id. Each scope has documents
    of its own: `engine.delete([ref_doc_id], scope=scope)`.

    Ids must be the same when a source is read again: by default LlamaIndex's readers and nodes make
    random ones.

    Text nodes without text, such as empty pages, are skipped and logged. Raises
    `InvalidInputError` for nodes of images and the like.
    """
    return group_passages(((source_of(node), _passage(node)) for node in nodes), scope)


def _passage(node: BaseNode) -> Passage:
    text = _text(node) if isinstance(node, TextNode | Node) else ""
    if not text.strip() and not _is_empty_page(node):
        raise InvalidInputError(
            f"A {type(node).__name__} without text can't be ingested; give nodes of text."
        )
    ours = {*HANDLE_METADATA_KEYS, HIDDEN_KEY}
    metadata = {k: v for k, v in node.metadata.items() if k not in ours}
    hidden = [key for key in node.excluded_llm_metadata_keys if key in metadata]
    if hidden:
        metadata[HIDDEN_KEY] = json.dumps(hidden)
    return Passage(text, metadata)


def _is_empty_page(node: BaseNode) -> bool:
    """Whether a node without text is a text node, and not one of an image or the like."""
    if isinstance(node, Node):
        others = (node.image_resource, node.audio_resource, node.video_resource)
        of_text = node.text_resource is not None or isinstance(node, LlamaIndexDocument)
        return of_text and not any(others)
    return isinstance(node, TextNode) and not isinstance(node, ImageNode)


def source_of(node: BaseNode) -> str:
    """The id of the document: the node's source, else the node's own id."""
    return node.ref_doc_id or node.node_id


def as_passage(node: BaseNode) -> tuple[str, str]:
    """The text of a node, and the id of its document, by which its handle is found."""
    return _text(node), source_of(node)


def mark(node: BaseNode, handle: KVHandle | None) -> BaseNode:
    """The node, with its handle in the metadata where its text was ingested."""
    if handle is None:
        return node
    marked = node.model_copy(deep=True)
    set_handle(marked, handle)
    return marked


def to_node(hit: SearchHit) -> NodeWithScore:
    """A chunk as a node, whose text in prompts is that of the node that was ingested.

    Its own templates are lost; nodes from an index, which `mark` returns, have them.
    """
    chunk = hit.chunk
    metadata = dict(chunk.metadata)
    hidden = json.loads(str(metadata.pop(HIDDEN_KEY, "[]")))
    ours = {"document_id": chunk.document_id, "title": chunk.title, "index": chunk.index}
    ours = {key: value for key, value in ours.items() if key not in metadata}
    hidden += ours
    node = TextNode(
        id_=chunk.id,
        text=chunk.text,
        metadata={**metadata, **ours},
        excluded_llm_metadata_keys=list(hidden),
        excluded_embed_metadata_keys=list(hidden),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=chunk.document_id)},
    )
    set_handle(node, hit.handle)
    return NodeWithScore(node=node, score=hit.score)


def set_handle(node: BaseNode, handle: KVHandle) -> None:
    """Put a handle into a node's metadata, excluded from prompts and embeddings."""
    node.metadata.update(handle.to_metadata())
    for excluded in (node.excluded_llm_metadata_keys, node.excluded_embed_metadata_keys):
        excluded.extend(key for key in HANDLE_METADATA_KEYS if key not in excluded)


def to_where(filters: MetadataFilters) -> dict[str, Any]:
    """LlamaIndex's metadata filters in the terms of `Store.search`; empty for none.

    Raises `InvalidInputError` for operators and conditions that the index doesn't have.
    """
    condition = _CONDITIONS.get(filters.condition or FilterCondition.AND)
    if condition is None:
        raise InvalidInputError(
            f"Filters joined by {filters.condition!r} are not supported; use and, or."
        )
    parts: list[dict[str, Any]] = []
    for one in filters.filters:
        if isinstance(one, MetadataFilters):
            if nested := to_where(one):
                parts.append(nested)
        elif one.operator in _OPERATORS:
            parts.append({one.key: {_OPERATORS[one.operator]: one.value}})
        else:
            raise InvalidInputError(
                f"The filter operator {one.operator.value!r} is not supported; use "
                f"{', '.join(operator.value for operator in _OPERATORS)}."
            )
    return {condition: parts} if parts else {}


def _text(node: BaseNode) -> str:
    return node.get_content(metadata_mode=MetadataMode.NONE)
