"""What LlamaIndex's components share: an engine or a server, which isn't serialised."""

from __future__ import annotations

from typing import Any, Self

from llama_index.core.schema import BaseComponent

from fusionrag_integrations.adapters.base import FusionEngine
from fusionrag_integrations.errors import InvalidInputError


class EngineComponent(BaseComponent):
    """`to_dict` and `to_json` contain a component's settings: no engine, server, key or path."""

    engine: FusionEngine | None

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """The component that `to_dict` describes, over an engine: from_dict(data, engine=engine).

        `from_json(text, engine=engine)` does the same; models take `base_url=` instead, too.
        Raises `InvalidInputError` without any.
        """
        if not {"engine", "base_url"} & kwargs.keys():
            raise InvalidInputError(
                f"A {cls.class_name()}'s dictionary holds no engine; give one: "
                f"{cls.class_name()}.from_dict(data, engine=engine)."
            )
        return super().from_dict(data, **kwargs)

    def __getstate__(self) -> Any:
        """Refused over an engine, which can't be pickled, as pipelines' workers need their parts.

        Over a server it is pickled, with the API key if one was given; each process makes
        connections of its own.
        """
        if self.engine is not None:
            raise InvalidInputError(
                f"A {self.class_name()} can't leave its process; run the pipeline without "
                "num_workers."
            )
        return super().__getstate__()
