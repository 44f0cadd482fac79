"""One prompt on its way to an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from fusionrag_integrations.execution.decoding import DecodedToken, FinishReason
from fusionrag_integrations.execution.hf.generation import Generation
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.prompt import EncodedPrompt
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.selectors.selection import TokenSelection
from fusionrag_integrations.serving.answer import Answer, PromptTrace, Reuse
from fusionrag_integrations.serving.answer.trace import NeighbourLookup
from fusionrag_integrations.serving.loading import LoadedPrompt
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.text_stream import CALL_TOKENS, TextStream
from fusionrag_integrations.serving.timing import Stopwatch
from fusionrag_integrations.serving.usage import Usage
from fusionrag_integrations.store.kv.lease import Lease


class Stage(Enum):
    """The next step of a request."""

    PREPARE = auto()
    LOAD = auto()
    SELECT = auto()
    RECOMPUTE = auto()
    DECODE = auto()
    DONE = auto()


class PartialAnswer:
    """An answer while it is decoded."""

    def __init__(self, decoder: Iterator[DecodedToken], text: TextStream) -> None:
        self._decoder = decoder
        self._text = text
        self._pieces: list[str] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """The text that no later token can change."""
        return "".join(self._pieces)

    def add_token(self) -> str:
        """Decode a token; returns text that no later token can change, which may be empty.

        Sets `finish_reason` at the end.
        """
        token = next(self._decoder)
        self.token_ids.append(token.token_id)
        piece = self._text.push(token.token_id)
        if token.finished or self._text.stopped:
            piece += self._text.flush()
            # A stop string may be in what was held back.
            self.finish_reason = "stop" if self._text.stopped else token.finished
        self._pieces.append(piece)
        return piece


@dataclass(slots=True, eq=False)
class Request:
    """What is known of one prompt. `Pipeline` changes it, step by step.

    Each comment names the step that sets the fields below it; before that they have no value.
    wait_for_all: set after damage showed late: read every layer of a record before using any.
    """

    prompt: Prompt
    settings: AnswerSettings
    lease: Lease
    watch: Stopwatch
    stage: Stage = Stage.PREPARE
    wait_for_all: bool = False

    # prepare. dense: compute all of the prompt. full_reason: why; recompute adds its own.
    encoded: EncodedPrompt = field(init=False)
    generation: Generation = field(init=False)
    assembled: AssembledPrompt = field(init=False)
    dense: bool = False
    full_reason: str = ""
    short: bool = False

    # load
    loaded: LoadedPrompt = field(init=False)
    placed: PlacedPrompt = field(init=False)

    # select
    selection: TokenSelection = field(init=False)

    # recompute. reuse: None under full attention.
    usage: Usage = field(init=False)
    reuse: Reuse | None = None
    output: PartialAnswer = field(init=False)

    # decode
    answer: Answer | None = None

    @property
    def done(self) -> bool:
        """Whether no step follows."""
        return self.stage is Stage.DONE

    def begin_output(self, decoder: Iterator[DecodedToken], tokenizer: Any) -> None:
        """Go on to decoding, once the prompt is computed."""
        shown = CALL_TOKENS if self.settings.tools else ()
        self.output = PartialAnswer(decoder, TextStream(tokenizer, self.settings.stop, shown))
        self.stage = Stage.DECODE

    def finish(self, neighbours: NeighbourLookup) -> None:
        """Make the answer, after its last token. neighbours: for the answer's trace."""
        output, reuse = self.output, self.reuse
        self.answer = Answer(
            text=output.text,
            token_ids=tuple(output.token_ids),
            finish_reason=output.finish_reason or "length",
            usage=replace(self.usage, completion_tokens=len(output.token_ids)),
            ttft=self.watch.breakdown(),
            short=self.short,
            full_reason=self.full_reason,
            **(reuse.counts() if reuse else {}),
            fallbacks=reuse.fallbacks() if reuse else (),
            trace=PromptTrace(self.encoded.text, self.encoded.offsets, reuse, neighbours),
        )
        self.close()

    def release_loaded(self) -> None:
        """The prompt is computed: free the memory of what it was computed from."""
        _delete(self, "loaded", "placed", "selection")

    def close(self) -> None:
        """Release all KV, and free its memory; no step follows. May be called again.

        Whoever made the request may hold it for long.
        """
        self.stage = Stage.DONE
        self.lease.release()
        self.release_loaded()
        _delete(self, "assembled", "generation", "output")


def _delete(request: Request, *names: str) -> None:
    """Leave these fields without a value, as they were before their step."""
    for name in names:
        if hasattr(request, name):
            delattr(request, name)
