"""What an engine answers about its model."""

from __future__ import annotations

from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.prompt import supports_tools
from fusionrag_integrations.support.inputs import checked


class ModelFacts:
    """The part of an engine that needs nothing but its model."""

    model: CausalModel

    @property
    def model_name(self) -> str:
        """The model's own name, without the path to it."""
        return self.model.name

    @property
    def context_window(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.model.context_window

    @property
    def has_chat_template(self) -> bool:
        """Whether the model's tokenizer renders chat messages."""
        return self.model.tokenizer.chat_template is not None

    @property
    def supports_tools(self) -> bool:
        """Whether the model's chat template renders tools that it may call."""
        return supports_tools(self.model.tokenizer)

    @checked()
    def encode(self, text: str) -> list[int]:
        """Token ids of `text` by the model's own tokenizer, without special tokens."""
        ids: list[int] = self.model.tokenizer(text, add_special_tokens=False).input_ids
        return ids
