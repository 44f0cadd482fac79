"""What LlamaIndex's components share: an engine, which isn't serialised."""

from __future__ import annotations

from typing import Any, Self

from llama_index.core.schema import BaseComponent

from fusionrag_integrations.errors import InvalidInputError


class EngineComponent(BaseComponent):
    """`to_dict` and `to_json` contain a component's settings: no engine, weights or paths."""

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """The component that `to_dict` describes, over an engine: from_dict(data, engine=engine).

        `from_json(text, engine=engine)` does the same. Raises `InvalidInputError` without one.
        """
        if "engine" not in kwargs:
            raise InvalidInputError(
                f"A {cls.class_name()}'s dictionary holds no engine; give one: "
                f"{cls.class_name()}.from_dict(data, engine=engine)."
            )
        return super().from_dict(data, **kwargs)

    def __getstate__(self) -> Any:
        """Refused: pipelines with several workers pickle their parts, and an engine can't be."""
        raise InvalidInputError(
            f"A {self.class_name()} can't leave its process; run the pipeline without num_workers."
        )
