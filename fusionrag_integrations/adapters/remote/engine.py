"""RemoteEngine: what adapters need of an engine, asked of a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from time import monotonic
from typing import Any, Self

from fusionrag_integrations.adapters.remote.bodies import answer_request, prompt_fields
from fusionrag_integrations.adapters.remote.connection import Connection
from fusionrag_integrations.adapters.remote.stream import RemoteAnswer, RemoteStream
from fusionrag_integrations.errors import ServerError
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.support.threads import Closable

MODELS, TOKENIZE = "/v1/models", "/v1/tokenize"
AT_ONCE = 8  # requests of one call
FRESH = 1.0  # seconds for which the store is taken to be unchanged


class RemoteEngine(Closable):
    """An engine behind the server at `base_url`, which has one model for as long as it runs.

    Loads no weights and opens no store: any number of processes may share one server's. Raises a
    `ServerError` where it fails, and otherwise what `FusionEngine` raises.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        """As in `Connection`. Nothing is asked of the server yet."""
        self._connection = Connection(base_url, api_key)
        self._facts: dict[str, Any] | None = None
        self._asked_at = 0.0

    def __reduce__(self) -> tuple[type[Self], tuple[str, str | None]]:
        return type(self), (self._connection.base_url, self._connection.api_key)

    def __deepcopy__(self, memo: object) -> Self:
        """Copies of a model share its connections, as copies over an engine share that."""
        return self

    def close(self) -> None:
        """Close the connections. May be called again."""
        self._connection.close()

    @property
    def model_name(self) -> str:
        """The model's own name."""
        return str(self._known["id"])

    @property
    def context_window(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return int(self._known["fusionrag"]["context_window"])

    @property
    def has_chat_template(self) -> bool:
        """Whether the model's tokenizer renders chat messages."""
        return bool(self._known["fusionrag"]["has_chat_template"])

    @property
    def supports_tools(self) -> bool:
        """Whether the model's chat template renders tools that it may call."""
        return bool(self._known["fusionrag"]["supports_tools"])

    def identity(self) -> dict[str, str | int]:
        """What answers depend on: the store's signature, the server, and the store's revision.

        Of at most a second ago: frameworks ask it before every call.
        """
        if self._facts is None or monotonic() - self._asked_at > FRESH:
            self._facts = self._ask_facts()
        store = self._facts["fusionrag"]["store"]
        place = sha256(self._connection.base_url.encode()).hexdigest()
        return {"signature": store["signature"], "store": place, "revision": store["revision"]}

    def stream(self, prompt: Prompt, settings: AnswerSettings | None = None) -> RemoteStream:
        """The answer to a prompt. The request is made when it is first read."""
        path, body = answer_request(prompt, settings or AnswerSettings())
        return RemoteStream(self._connection, path, body)

    def answer(self, prompt: Prompt, settings: AnswerSettings | None = None) -> RemoteAnswer:
        """The answer, once it is complete."""
        return self.stream(prompt, settings).read()

    def answer_all(
        self, prompts: Sequence[Prompt], settings: AnswerSettings | None = None
    ) -> list[RemoteAnswer]:
        """Their answers: requests at the same time, which the server computes together."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(lambda prompt: self.answer(prompt, settings), prompts))

    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        """Token ids of `text` by the model's own tokenizer, without special tokens."""
        body = {"text": text, "control_tokens": control_tokens}
        return list(self._connection.ask("POST", TOKENIZE, body)["token_ids"])

    def count_tokens(
        self, prompt: Prompt, tools: Sequence[Mapping[str, Any]] = (), raw: bool | None = None
    ) -> int:
        """Tokens that the model reads of a prompt, its chat template's and tools' included."""
        _, asked = prompt_fields(prompt, tools)
        body = asked if raw is None else asked | {"raw": raw}
        return int(self._connection.ask("POST", TOKENIZE, body)["count"])

    @property
    def _known(self) -> dict[str, Any]:
        if self._facts is None:
            self._facts = self._ask_facts()
        return self._facts

    def _ask_facts(self) -> dict[str, Any]:
        asked_at = monotonic()
        try:
            (model,) = self._connection.ask("GET", MODELS)["data"]
            facts: dict[str, Any] = {"id": model["id"], "fusionrag": dict(model["fusionrag"])}
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(
                f"The server at {self._connection.base_url} doesn't describe its model; is it a "
                "FusionRAG server?"
            ) from error
        self._asked_at = asked_at
        return facts
