"""FusionKVTransform: LlamaIndex's IngestionPipeline as a way into a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self
from uuid import uuid4

from llama_index.core.schema import BaseNode, TransformComponent
from pydantic import ConfigDict, Field, PrivateAttr

from fusionrag_integrations.components import Component
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.inputs import checked_value
from fusionrag_integrations.llama_index.component import EngineComponent
from fusionrag_integrations.llama_index.nodes import mark, to_documents


class FusionKVTransform(Component, EngineComponent, TransformComponent):
    """Ingests the nodes that come through a pipeline, and gives them their handles.

    Put it last, behind whatever changes a node's text or embeds it. A pipeline's cache skips it
    only while the store stays as it is; what was ingested already costs nothing.

    A source's nodes must come together, since they replace what was ingested of it before. A
    pipeline with a docstore sees to that for whole documents that it splits itself, but passes on
    only the new ones of nodes that were split already.

    Raises `InvalidInputError` for nodes of images and the like, and as `FusionEngine.ingest` does.

        IngestionPipeline(transformations=[SentenceSplitter(), FusionKVTransform(engine=engine)])
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    engine: FusionEngine = Field(exclude=True, repr=False)
    scope: str = Field(default="", description="The scope that the nodes belong to.")
    _opened: str = PrivateAttr(default_factory=lambda: uuid4().hex)  # never twice for two stores

    @classmethod
    def class_name(cls) -> str:
        return "FusionKVTransform"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """A pipeline's cache asks by this whether nodes may skip it: not once the store changed."""
        state = {"opened": self._opened, "revision": self.engine.corpus.catalog.revision}
        return {**super().to_dict(**kwargs), **state}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """What `to_dict` says of the store's state is no setting."""
        settings = {name: data[name] for name in data.keys() - {"opened", "revision"}}
        return super().from_dict(settings, **kwargs)

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Ingest the nodes; raises as `FusionEngine.ingest` does."""
        nodes = list(checked_value("nodes", nodes, Iterable[BaseNode]))
        if not nodes:  # a docstore knew them all
            return []
        self.engine.ingest(to_documents(nodes, self.scope))
        return [mark(self.engine.corpus, node, [self.scope]) for node in nodes]

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        return await self.engine.threads.run(self.__call__, nodes, **kwargs)
