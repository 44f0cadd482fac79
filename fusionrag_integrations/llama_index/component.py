"""What LlamaIndex's components share: an engine that no dictionary of theirs holds."""

from __future__ import annotations

from typing import Any, Self

from llama_index.core.schema import BaseComponent

from fusionrag_integrations.errors import InvalidInputError


class EngineComponent(BaseComponent):
    """`to_dict` and `to_json` hold a component's settings: no engine, weights or paths."""

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """The component that `to_dict` told of, over an engine: from_dict(data, engine=engine).

        `from_json(text, engine=engine)` does the same. Raises `InvalidInputError` without one.
        """
        if "engine" not in kwargs:
            raise InvalidInputError(
                f"A {cls.class_name()}'s dictionary holds no engine; give one: "
                f"{cls.class_name()}.from_dict(data, engine=engine)."
            )
        return super().from_dict(data, **kwargs)

    def __getstate__(self) -> Any:
        """A pipeline with several workers sends its parts to other processes; no engine can go."""
        raise InvalidInputError(
            f"A {self.class_name()} can't leave its process; run the pipeline without num_workers."
        )
