"""One prompt on its way to an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

import torch

from fusionrag_integrations.execution.buffer import SequenceKV
from fusionrag_integrations.execution.decoding import FinishReason, TokenChooser
from fusionrag_integrations.execution.hf.generation import Generation
from fusionrag_integrations.execution.known_start import NOTHING_KNOWN, KnownStart
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.execution.work import Input, Work
from fusionrag_integrations.prompt import EncodedPrompt
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.selectors.selection import TokenSelection
from fusionrag_integrations.serving.answer import Answer, PromptTrace, Reuse
from fusionrag_integrations.serving.answer.pieces import Pieces
from fusionrag_integrations.serving.answer.trace import NeighbourLookup
from fusionrag_integrations.serving.loading import LoadedPrompt, ReadPrompt
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.text_stream import CALL_TOKENS, TextStream
from fusionrag_integrations.serving.timing import Stopwatch
from fusionrag_integrations.serving.usage import Usage
from fusionrag_integrations.store.kv.lease import Lease


class Stage(Enum):
    """The next step of a request."""

    PREPARE = auto()
    READ = auto()
    CAPTURE = auto()
    PLACE = auto()
    SELECT = auto()
    RECOMPUTE = auto()
    DECODE = auto()
    DONE = auto()


class PartialAnswer:
    """An answer while it is decoded."""

    def __init__(self, chooser: TokenChooser, text: TextStream) -> None:
        self._chooser = chooser
        self._text = text
        self._pieces: list[str] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """The text that no later token can change."""
        return "".join(self._pieces)

    def add_token(self, logits: torch.Tensor) -> str:
        """The token that follows, of logits [V]; returns text that no later token can change.

        The text may be empty. Sets `finish_reason` at the end.
        """
        token = self._chooser.choose(logits)
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
    pieces: where the text of the answer goes. cancelled: set from any thread; no step follows.
    wait_for_all: set after damage showed late: read every layer of a record before using any.
    number: of arrival. suspect: a pass that it shared has failed, perhaps because of it.
    work: what the step that is due has to compute in passes of the model.
    """

    prompt: Prompt
    settings: AnswerSettings
    lease: Lease
    watch: Stopwatch
    pieces: Pieces = field(default_factory=Pieces)
    stage: Stage = Stage.PREPARE
    cancelled: bool = False
    wait_for_all: bool = False
    number: int = -1
    suspect: bool = False
    work: Work[Any] | None = None

    # prepare. known: what the prompt begins with, as earlier requests do. revision: the store's.
    # dense: compute all of the prompt. full_reason: why; recompute adds its own.
    encoded: EncodedPrompt = field(init=False)
    generation: Generation = field(init=False)
    assembled: AssembledPrompt = field(init=False)
    known: KnownStart = NOTHING_KNOWN
    revision: int = -1
    dense: bool = False
    full_reason: str = ""
    short: bool = False

    # read
    read: ReadPrompt = field(init=False)

    # capture
    loaded: LoadedPrompt = field(init=False)

    # place
    placed: PlacedPrompt = field(init=False)

    # select
    selection: TokenSelection = field(init=False)

    # recompute. exact: of so many tokens KV is as under full attention. reuse: None under it.
    # append: what a pass computes to append a token at a position. kv: to which that is written,
    # where an engine keeps KV.
    append: Callable[[int, int], Input] = field(init=False)
    kv: SequenceKV = field(init=False)
    exact: int = 0
    usage: Usage = field(init=False)
    reuse: Reuse | None = None
    output: PartialAnswer = field(init=False)

    # decode
    answer: Answer | None = None

    @property
    def over(self) -> bool:
        """Whether no step follows."""
        return self.cancelled or self.stage is Stage.DONE

    @property
    def computed_ids(self) -> tuple[int, ...]:
        """The tokens whose KV is computed: the prompt's and the answer's, but for its last."""
        return (*self.encoded.token_ids, *self.output.token_ids[:-1])

    @property
    def capacity(self) -> int:
        """Tokens that the prompt and its answer may have."""
        return len(self.encoded.token_ids) + self.settings.max_tokens

    def begin_output(
        self, device: torch.device, append: Callable[[int, int], Input], tokenizer: Any
    ) -> None:
        """Go on to decoding, once the prompt is computed. device: of its logits."""
        shown = CALL_TOKENS if self.settings.tools else ()
        chooser = TokenChooser(self.generation, device, self.settings.seed)
        text = TextStream(tokenizer, self.settings.stop, shown)
        self.output, self.append = PartialAnswer(chooser, text), append
        self.stage = Stage.DECODE

    @property
    def last_token(self) -> tuple[int, int]:
        """The token that the answer ends with so far, and its position."""
        tokens = self.output.token_ids
        return tokens[-1], len(self.encoded.token_ids) + len(tokens) - 1

    @property
    def decode_input(self) -> Input:
        """What a pass computes to know the next token."""
        return self.append(*self.last_token)

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
        if hasattr(self, "placed"):
            self.placed.close()
        _delete(self, "read", "loaded", "placed", "selection")

    def close(self, error: BaseException | None = None) -> None:
        """Release all KV, and free its memory; no step follows. May be called again.

        Whoever made the request may hold it for long. error: what has ended it, which whoever reads
        the answer gets.
        """
        self.stage = Stage.DONE
        self.work, self.known = None, NOTHING_KNOWN
        self.lease.release()
        self.release_loaded()
        _delete(self, "assembled", "generation", "output", "append", "kv")
        self.pieces.end(error)  # whoever has read to the end finds all released


def _delete(request: Request, *names: str) -> None:
    """Leave these fields without a value, as they were before their step."""
    for name in names:
        if hasattr(request, name):
            delattr(request, name)
