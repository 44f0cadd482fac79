"""What the steps of all requests have in common, whether an engine keeps KV or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.keys import isolated_key
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import StoreClosedError
from fusionrag_integrations.execution.work import Runner
from fusionrag_integrations.prompt import EncodedPrompt, encode_chunk
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.adhoc import AdHocChunks
from fusionrag_integrations.serving.known_chunks import KnownChunks
from fusionrag_integrations.serving.known_starts import KnownStarts
from fusionrag_integrations.serving.loading import LoadedPrompt
from fusionrag_integrations.serving.preparation import Preparation
from fusionrag_integrations.serving.request import Request, Stage
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.timing import Stopwatch
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.support.threads import Closable


class RequestSteps(Closable, ABC):
    """The steps of requests over the chunks of one store.

    What requests share is safe to use from several threads; all else is in the `Request`.
    why_full: as an answer tells it.
    """

    why_full = "the settings ask for it (kv='none')."

    def __init__(
        self,
        executor: Runner,
        catalog: Catalog,
        kv: TieredKV,
        *,
        break_even: int = 0,
        on_hot: Callable[[ChunkRecord], None] = lambda record: None,
        start_bytes: int = 0,
    ) -> None:
        """See `Pipeline`."""
        self.executor = executor
        self._catalog = catalog
        self._kv = kv
        self.adhoc = AdHocChunks(catalog, kv, self._record, on_hot)
        self.starts = KnownStarts(start_bytes)
        chunks = KnownChunks(catalog, self.adhoc, self._record)
        self._preparation = Preparation(
            executor.model, chunks, self.starts, lambda: catalog.revision, break_even, self.why_full
        )
        self._closed = False

    def close(self) -> None:
        """Wait until ad-hoc chunks are stored. Requests in progress fail at their next step."""
        self._closed = True
        self.starts.clear()
        self.adhoc.close()

    def check_open(self) -> None:
        """Raises `StoreClosedError` once this or the catalog is closed."""
        self._catalog.check_open()
        if self._closed:
            raise StoreClosedError.of(self._catalog.store)

    def request(self, prompt: Prompt, settings: AnswerSettings) -> Request:
        """A request, before its first step. Raises `InvalidInputError` for KV that isn't kept."""
        watch = Stopwatch(self.executor.model.device)
        return Request(prompt, self._settled(settings), self._kv.lease(), watch)

    def prepare(self, request: Request) -> None:
        """Render, match and tokenize the prompt, and decide whether KV is reused."""
        self._preparation.prepare(request)
        request.stage = Stage.RECOMPUTE if request.dense else Stage.READ

    def reads_at_once(self, request: Request) -> bool:
        """Whether `read` waits for no disk, nor for anything else."""
        return True

    def read(self, request: Request) -> None:
        """Read the KV of the chunks."""

    def advance(self, request: Request) -> None:
        """Go on from placing KV to decoding, as far as that takes no pass of the model.

        Where it takes one, `work` has rows left.
        """
        steps = self._steps_between
        while request.stage in steps and not (request.work and request.work.left):
            steps[request.stage](request)

    @abstractmethod
    def recompute(self, request: Request) -> None:
        """Prefill: the first call gives `work` to compute, the one after it goes on to decode."""

    def decode(self, request: Request, logits: torch.Tensor) -> None:
        """The next token, of logits [V]; text that is certain now goes to the reader."""
        first = not request.output.token_ids
        piece = request.output.add_token(logits)
        if first:
            request.watch.lap("first_token")
        request.pieces.put(piece)
        if request.output.finish_reason:
            self._keep_answered(request)
            request.finish(self._catalog.kv.neighbour_chunks)

    def take_in(self, request: Request, outputs: Sequence[torch.Tensor]) -> None:
        """Go on after a pass. outputs: what it has made of the request's inputs."""
        if request.work is None:
            self.decode(request, outputs[0][0])
            return
        request.work.give(outputs)
        self.advance(request)

    def settle(self, request: Request) -> None:
        """Wait until all KV that a pass would read is there. Raises where some can't be read."""

    def encode(self, prompt: Prompt, settings: AnswerSettings) -> EncodedPrompt:
        """A prompt's tokens, as in a request."""
        return self._preparation.encode(prompt, settings)

    @abstractmethod
    def load_prompt(self, prompt: Prompt, settings: AnswerSettings) -> LoadedPrompt:
        """A prompt with its KV, as in a request."""

    @property
    def _steps_between(self) -> Mapping[Stage, Callable[[Request], None]]:
        """Those between reading and decoding."""
        return {Stage.RECOMPUTE: self.recompute}

    @abstractmethod
    def _settled(self, settings: AnswerSettings) -> AnswerSettings:
        """The settings, saying which KV is used. Raises `InvalidInputError` where it isn't kept."""

    def _keep_answered(self, request: Request) -> None:
        """Keep what the next request may use of one that is answered."""

    def _record(self, chunk: Chunk) -> ChunkRecord:
        encoded = encode_chunk(self._tokenizer, chunk)
        signature = self._catalog.info.record_signature
        return ChunkRecord(encoded, isolated_key(encoded.token_ids, signature, chunk.scope))

    @property
    def _tokenizer(self) -> Any:
        return self.executor.model.tokenizer
