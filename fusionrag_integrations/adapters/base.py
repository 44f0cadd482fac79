"""What adapters need of an engine, in this process or behind a server.

`FusionEngine` is an `Engine`, and so is `remote.RemoteEngine`. The classes that hold a model or a
store are here as annotations which load neither: a process that only asks a server stays small.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from fusionrag_integrations.documents.handles import KVHandle, SearchHit
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.usage import Usage

if TYPE_CHECKING:
    from fusionrag_integrations.engine import FusionEngine
    from fusionrag_integrations.store.store import Store
else:
    FusionEngine = Store = object

__all__ = ["Answered", "ChunkSource", "EmbeddedHits", "Engine", "FusionEngine", "Store", "Stream"]

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Answered(Protocol):
    """A complete answer, as `serving.answer.Answer` is."""

    @property
    def text(self) -> str:
        """The whole text."""
        ...

    @property
    def usage(self) -> Usage:
        """How its tokens were obtained."""
        ...

    def report(self) -> dict[str, Any]:
        """How it came about, as plain values."""
        ...


class Stream(Protocol):
    """An answer while it is generated, as `serving.answer.AnswerStream` is."""

    def __iter__(self) -> Iterator[str]:
        """Pieces of its text."""
        ...

    def __next__(self) -> str:
        """The next piece."""
        ...

    def __aiter__(self) -> AsyncIterator[str]:
        """Pieces of its text, without blocking the event loop."""
        ...

    @property
    def answer(self) -> Answered:
        """The whole, once the stream has been read to the end; raises `FusionRAGError` before."""
        ...

    def read(self) -> Answered:
        """Read to the end."""
        ...

    async def aread(self) -> Answered:
        """Read to the end; cancelled, it ends the request."""
        ...

    def close(self) -> None:
        """End the request. Does nothing if it has ended."""
        ...

    async def aclose(self) -> None:
        """`close`, for a stream that was read asynchronously."""
        ...


class Engine(Protocol):
    """Answers prompts with one model."""

    @property
    def model_name(self) -> str:
        """The model's own name."""
        ...

    @property
    def context_window(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether the model's tokenizer renders chat messages."""
        ...

    @property
    def supports_tools(self) -> bool:
        """Whether its chat template renders tools."""
        ...

    def identity(self) -> dict[str, str | int]:
        """What answers depend on beside the model's name: its signature, the store, its state."""
        ...

    def stream(self, prompt: Prompt, settings: AnswerSettings | None = None) -> Stream:
        """The answer to a prompt; work begins when it is first read."""
        ...

    def answer(self, prompt: Prompt, settings: AnswerSettings | None = None) -> Answered:
        """The answer, once it is complete."""
        ...

    def answer_all(
        self, prompts: Sequence[Prompt], settings: AnswerSettings | None = None
    ) -> Sequence[Answered]:
        """Their answers, computed together."""
        ...

    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        """Token ids of a text; without control_tokens, what spells one is text."""
        ...

    def count_tokens(
        self, prompt: Prompt, tools: Sequence[Mapping[str, Any]] = (), raw: bool | None = None
    ) -> int:
        """Tokens that the model reads of a prompt."""
        ...

    def close(self) -> None:
        """Release all resources."""
        ...


@dataclass(frozen=True, slots=True)
class EmbeddedHits:
    """What a search found, nearest first, with vectors: the question's, and the chunks' by id."""

    hits: list[SearchHit]
    question: list[float]
    chunks: Mapping[str, list[float]]


class ChunkSource(Protocol):
    """Where a retriever finds chunks, and their handles."""

    def search(
        self,
        question: str,
        k: int,
        *,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[SearchHit]:
        """The `k` chunks nearest to a question. Raises as `Store.search` does."""
        ...

    def search_embedded(
        self,
        question: str,
        k: int,
        *,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> EmbeddedHits:
        """The same with vectors."""
        ...

    def handles_of(
        self, passages: Sequence[tuple[str, str]], scopes: Sequence[str] | None
    ) -> list[KVHandle | None]:
        """A handle for each (text, document id) whose text is known, else None."""
        ...

    def expect_prompt(
        self, handles: Iterable[KVHandle], unknown: Iterable[str], scopes: Sequence[str] | None
    ) -> None:
        """Load KV that the next prompt needs, and register its unknown texts, while it is made."""
        ...

    async def run(
        self, call: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Await a call of these in a thread."""
        ...

    def close(self) -> None:
        """Release what was opened for the retriever alone."""
        ...
