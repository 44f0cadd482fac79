"""FusionKVTransform: ingests the nodes of LlamaIndex's IngestionPipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self
from uuid import uuid4

from llama_index.core.schema import BaseNode, TransformComponent
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from fusionrag_integrations.adapters.base import FusionEngine
from fusionrag_integrations.adapters.chosen import checked_engine
from fusionrag_integrations.adapters.component import Component
from fusionrag_integrations.llama_index.component import EngineComponent
from fusionrag_integrations.llama_index.nodes import as_passage, mark, to_documents
from fusionrag_integrations.support.inputs import checked_value


class FusionKVTransform(Component, EngineComponent, TransformComponent):
    """Ingests the nodes of a pipeline, and gives them their handles.

    Put it last, after whatever changes a node's text or embeds it. A pipeline's cache skips it only
    while the store doesn't change; what was ingested already costs nothing.

    A source's nodes must come together, since they replace what was ingested of it before. So they
    do in a pipeline with a docstore that splits whole documents itself; of nodes that were split
    before, it passes on only the new ones.

    Raises `InvalidInputError` for nodes of images and the like, and as `FusionEngine.ingest` does.

        IngestionPipeline(transformations=[SentenceSplitter(), FusionKVTransform(engine=engine)])
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    engine: FusionEngine = Field(exclude=True, repr=False)
    scope: str = Field(default="", description="The scope that the nodes belong to.")
    _opened: str = PrivateAttr(
        default_factory=lambda: uuid4().hex
    )  # differs for each store that was opened

    @model_validator(mode="after")
    def _check(self) -> Self:
        checked_engine(self.engine)
        return self

    @classmethod
    def class_name(cls) -> str:
        return "FusionKVTransform"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Part of a pipeline's cache key, so that it changes whenever the store does."""
        state = {"opened": self._opened, "revision": self.engine.store.catalog.revision}
        return {**super().to_dict(**kwargs), **state}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """As in `EngineComponent`; the store's state in `to_dict` is no setting."""
        settings = {name: data[name] for name in data.keys() - {"opened", "revision"}}
        return super().from_dict(settings, **kwargs)

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Ingest the nodes; raises as `FusionEngine.ingest` does."""
        nodes = list(checked_value("nodes", nodes, Iterable[BaseNode]))
        if not nodes:  # a docstore had them all
            return []
        self.engine.ingest(to_documents(nodes, self.scope))
        handle_of = self.engine.store.handle_of
        return [mark(node, handle_of(*as_passage(node), [self.scope])) for node in nodes]

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        return await self.engine.threads.run(self.__call__, nodes, **kwargs)
