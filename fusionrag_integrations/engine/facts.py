"""What an engine tells of its model and its store."""

from __future__ import annotations

from hashlib import sha256

from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.prompt import encode_text, supports_tools
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.support.inputs import checked


class EngineFacts:
    """The part of an engine that says what it is."""

    model: PlainModel
    store: Store

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
    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        """Token ids of `text` by the model's own tokenizer, without special tokens.

        control_tokens: whether text that spells one is one, as in a raw prompt; False is as in
        chunks and messages, where it is text.
        """
        if not control_tokens:
            return encode_text(self.model.tokenizer, text)
        ids: list[int] = self.model.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def identity(self) -> dict[str, str | int]:
        """What answers depend on beside the model's name and the settings.

        signature: of the model and what it ingests by. store: a hash of the store's path, which is
        private. revision: changes with the store's content.
        """
        place = str(self.store.path.resolve()).encode()
        return {
            "signature": self.store.catalog.info.record_signature,
            "store": sha256(place).hexdigest(),
            "revision": self.store.catalog.revision,
        }
