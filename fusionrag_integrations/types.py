"""The state that flows through the package. Leaf file: of ours it imports what checks inputs.

text --chunk--> Chunk --prefill--> ChunkKV --put--> store                          (ingest)
prompt text --match--> AssembledPrompt --select--> TokenSelection --> Answer       (answer)

Axes, named once: L layers, Hq query heads, Hkv key/value heads, T tokens of a chunk,
N tokens of a prompt, D head size. Positions count tokens from 0 at the prompt's start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Protocol,
    TypedDict,
    get_args,
)

from fusionrag_integrations.errors import InvalidInputError, UnknownSelectorError
from fusionrag_integrations.inputs import (
    check_fields,
    check_text,
    checked_value,
    refuse_unknown,
    renamed,
    shown,
)
from fusionrag_integrations.metadata import plain_metadata

if TYPE_CHECKING:
    import torch

MetadataValue = str | int | float | bool
KVKind = Literal["isolated", "fused"]
KVFormat = Literal["float32", "float16", "bfloat16", "int8", "int4"]
KVSource = Literal["isolated", "fused", "prefix", "none"]
LEAST_TEMPERATURE = 1e-6  # logits divided by less are beyond float32
SEEDS = 1 << 63  # of a generator of random numbers, on either side of 0
SelectorName = Literal[
    "none",
    "all",
    "random",
    "cacheblend",
    "cache_craft",
    "epic",
    "fusionrag_paper",
    "prophetkv",
    "infoflow",
    "fusionrag",
]
FinishReason = Literal["stop", "length"]


class Message(TypedDict):
    """One chat message, in the form that chat templates take.

    tool_calls: of an assistant, [{"type": "function", "function": {"name", "arguments"}}], the
    arguments as a dictionary. name, tool_call_id: of a tool's result.
    """

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    name: NotRequired[str]
    tool_call_id: NotRequired[str]


_BLANK_LINES = re.compile(r"\s*[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")  # ends of lines, to Python


def canonical_text(text: str) -> str:
    """A text without blank lines before it and white space behind it.

    The first line keeps its indentation, which says something in code.
    """
    text = text.rstrip()
    blank = _BLANK_LINES.match(text)
    return text[blank.end() :] if blank else text


def _keep_metadata(given: Any) -> None:
    checked_value("metadata", given.metadata, Mapping[str, Any])
    try:
        plain = plain_metadata(given.metadata)
    except RecursionError as error:
        raise InvalidInputError(
            "metadata is nested too deep; give entries with less in them."
        ) from error
    object.__setattr__(given, "metadata", plain)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document that was split already. Its metadata comes on top of the document's.

    Metadata are kept as `plain_metadata` makes them: paths and dates as strings.
    """

    text: str
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise InvalidInputError(f"A passage's text is {shown(self.text)}; give a string.")
        _keep_metadata(self)


class DocumentKey(NamedTuple):
    """What names a document: its id among those of its scope."""

    id: str
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A text to ingest. Ingesting another text under the same id, in the same scope, replaces it.

    passages: the text as it was split elsewhere, in order, in the place of `text`. Each becomes
    one chunk, byte for byte but for blank lines before it and white space behind it.
    """

    id: str
    text: str = ""
    title: str = ""
    scope: str = ""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    passages: tuple[Passage, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise InvalidInputError(
                f"A document's id is {shown(self.id)}; give a non-empty string."
            )
        check_text(f"The id {shown(self.id)} of a document", self.id)
        for name in ("text", "title", "scope"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InvalidInputError(
                    f"The {name} of document {self.id!r} is {shown(value)}; give a string."
                )
            check_text(f"The {name} of document {self.id!r}", value)
        _keep_metadata(self)
        checked_value("passages", self.passages, tuple[Passage, ...])
        for passage in self.passages:
            check_text(f"A passage of document {self.id!r}", passage.text)
        if self.text and self.passages:
            raise InvalidInputError(
                f"Document {self.id!r} has a text and passages; give one of them."
            )

    @property
    def key(self) -> DocumentKey:
        return DocumentKey(self.id, self.scope)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document. `text` is canonical, otherwise byte for byte the source."""

    id: str
    document_id: str
    index: int
    text: str
    title: str = ""
    scope: str = ""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.text or self.text != canonical_text(self.text):
            raise InvalidInputError(
                f"Chunk {self.id!r} needs a non-empty text without blank lines before it or white "
                "space behind it."
            )

    @property
    def document(self) -> DocumentKey:
        """The document that it is a piece of."""
        return DocumentKey(self.document_id, self.scope)

    @property
    def embedding_text(self) -> str:
        """What the index embeds: the title says what a chunk full of pronouns is about."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class KVHandle:
    """Names a chunk and its stored KV, in strings only, so that any metadata can carry it."""

    chunk_id: str
    isolated_key: str
    fused_key: str = ""

    def to_metadata(self) -> dict[str, MetadataValue]:
        """Flat metadata entries, one per field, under `fusionrag_` names."""
        return {f"fusionrag_{f.name}": getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> KVHandle | None:
        """The handle in `metadata`, or None where there is none."""
        values = {f.name: str(metadata.get(f"fusionrag_{f.name}", "")) for f in fields(cls)}
        return cls(**values) if values["chunk_id"] else None


HANDLE_METADATA_KEYS = tuple(f"fusionrag_{f.name}" for f in fields(KVHandle))


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A chunk in the model's tokens. `offsets[i]` are token i's character bounds in the text."""

    chunk: Chunk
    token_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.offsets):
            raise InvalidInputError(
                f"Chunk {self.chunk.id!r} has {len(self.token_ids)} tokens "
                f"but {len(self.offsets)} offsets."
            )


@dataclass(frozen=True, slots=True)
class ContextTrace:
    """How a chunk's tokens depended on the neighbours when its KV was fused. Numbers, no content.

    sensitivity: by how much each token's KV moved away from its isolated KV, squared and relative
    to the chunk's own size, mean over layers; 0 for a token that its context doesn't change.
    outside, inside: each token's attention to the neighbours and to its own chunk, mean over
    layers and heads; what is missing to 1 went to the ingest prefix.
    neighbours, by_neighbour: their isolated keys, in order, and the attention that each got,
    mean over tokens. neighbour_tokens: how many tokens they had in all.
    """

    sensitivity: tuple[float, ...]
    outside: tuple[float, ...]
    inside: tuple[float, ...]
    neighbours: tuple[str, ...]
    by_neighbour: tuple[float, ...]
    neighbour_tokens: int

    def __post_init__(self) -> None:
        if not len(self.sensitivity) == len(self.outside) == len(self.inside):
            raise InvalidInputError("A trace needs as many numbers of each kind as tokens.")
        if len(self.neighbours) != len(self.by_neighbour):
            raise InvalidInputError("A trace needs one number for each neighbour.")


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """What the catalog knows of a chunk: its tokens and the keys of its KV.

    `fused_key` is empty while there is no fused KV, or none that is still true. `trace` is of the
    last time that it was fused, and stays when that KV goes. captured: whether the text was kept
    from a request, and is in no ingested document.
    """

    encoded: EncodedChunk
    isolated_key: str
    fused_key: str = ""
    trace: ContextTrace | None = None
    captured: bool = False

    @property
    def chunk(self) -> Chunk:
        return self.encoded.chunk

    @property
    def handle(self) -> KVHandle:
        return KVHandle(self.chunk.id, self.isolated_key, self.fused_key)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ChunkKV:
    """Keys and values of one chunk, never modified once made.

    keys, values: [L, Hkv, T, D], same dtype, on any device. Keys stand in the canonical frame:
    as if each token were at position 0, so that they can be rotated to any position. Those of
    `rotated` KV stand at their places in the chunk, 0, 1, ..., and can be attended to in place.
    `neighbours` are the isolated keys of the chunks that stood before this one, in order.
    """

    key: str
    kind: KVKind
    token_ids: tuple[int, ...]
    keys: torch.Tensor
    values: torch.Tensor
    neighbours: tuple[str, ...] = ()
    rotated: bool = False

    def __post_init__(self) -> None:
        shape = tuple(self.keys.shape)
        if len(shape) != 4 or shape != tuple(self.values.shape):
            raise InvalidInputError(
                f"Keys and values must both be [L, Hkv, T, D]; got {shape} "
                f"and {tuple(self.values.shape)}."
            )
        if shape[2] != len(self.token_ids):
            raise InvalidInputError(
                f"KV of {shape[2]} tokens was given {len(self.token_ids)} token ids."
            )

    def ready(self, layers: slice = slice(None)) -> bool:
        """Whether these layers are there: all are."""
        return True

    def wait(self) -> None:
        """All layers are there."""

    def tensors(self, layers: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of some layers on a device."""
        keys, values = self.keys[layers], self.values[layers]
        return keys.to(device, non_blocking=True), values.to(device, non_blocking=True)


class LayeredKV(Protocol):
    """KV of a chunk that is on its way to a request, or there. See `ChunkKV`, which is one."""

    @property
    def key(self) -> str: ...

    @property
    def kind(self) -> KVKind: ...

    @property
    def token_ids(self) -> tuple[int, ...]: ...

    @property
    def rotated(self) -> bool: ...

    def ready(self, layers: slice = slice(None)) -> bool:
        """Whether these layers are there."""
        ...

    def wait(self) -> None:
        """Wait for all layers. Raises `KVRecordError` where they can't come."""
        ...

    def tensors(self, layers: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [layers, Hkv, T, D] on a device, of any dtype; read them, no more.

        Waits until the layers are there. Raises `KVRecordError` where they can't come.
        """
        ...


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A chunk that the index found. `score` is cosine similarity, higher is nearer."""

    chunk: Chunk
    score: float
    handle: KVHandle


@dataclass(frozen=True, slots=True)
class TextMatch:
    """Characters [start, stop) of a prompt that equal the first characters of a known chunk.

    Where the prompt has cut the chunk's indentation, start is where that would begin.
    """

    record: ChunkRecord
    start: int
    stop: int
    variant: KVKind = "fused"


@dataclass(frozen=True, slots=True)
class Span:
    """A run of a chunk's tokens in a prompt.

    The chunk's tokens [source_start, source_start + length) stand at the prompt's
    positions [start, start + length).
    """

    record: ChunkRecord
    variant: KVKind
    source_start: int
    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class AssembledPrompt:
    """A prompt as tokens, with the runs whose KV is known.

    Spans are in order of position, don't overlap, and never hold the last token: it is
    always computed, since its logits give the first token of the answer.
    `question` bounds the positions behind the last chunk that hold the user's words.
    `chunk_positions` are those whose KV is known, `fresh_positions` all others, which must be
    computed; both ascending.
    """

    token_ids: tuple[int, ...]
    spans: tuple[Span, ...]
    question: tuple[int, int]
    chunk_positions: tuple[int, ...] = field(init=False, repr=False, compare=False)
    fresh_positions: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise InvalidInputError("The prompt is empty.")
        stop = 0
        known: list[int] = []
        fresh: list[int] = []
        for span in self.spans:
            if span.start < stop or span.length < 1:
                raise InvalidInputError("Spans must be non-empty, in order and apart.")
            fresh += range(stop, span.start)
            known += range(span.start, span.stop)
            stop = span.stop
        if stop >= len(self.token_ids):
            raise InvalidInputError("The prompt's last token can't belong to a chunk.")
        fresh += range(stop, len(self.token_ids))
        object.__setattr__(self, "chunk_positions", tuple(known))
        object.__setattr__(self, "fresh_positions", tuple(fresh))

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def occurrences(self) -> list[list[Span]]:
        """The spans of each placed chunk; boundary tokens can split one into several."""
        chunks: list[list[Span]] = []
        for span in self.spans:
            before = chunks[-1][-1] if chunks else None
            goes_on = (
                before is not None
                and before.record.chunk.id == span.record.chunk.id
                and before.source_start + before.length <= span.source_start
            )
            if goes_on:
                chunks[-1].append(span)
            else:
                chunks.append([span])
        return chunks

    @property
    def positions_by_chunk(self) -> list[list[int]]:
        """The positions of each placed chunk's tokens, in order."""
        return [
            [position for span in spans for position in range(span.start, span.stop)]
            for spans in self.occurrences
        ]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedPrompt:
    """A prompt with only the spans whose KV could be loaded, and that KV, span by span.

    missed: the spans whose KV is missing, corrupt or foreign. Their tokens are fresh. captured: KV
    among `kvs` that was computed for this prompt, by its chunk's id. reasons: by a chunk's id, why
    its KV is not fused, or why there is none.
    """

    prompt: AssembledPrompt
    kvs: tuple[LayeredKV, ...]
    missed: tuple[Span, ...]
    captured: Mapping[str, ChunkKV] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenSelection:
    """Chunk positions to recompute, ascending and without repeats."""

    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip(self.positions, self.positions[1:], strict=False)):
            raise InvalidInputError("Selected positions must be ascending, without repeats.")

    def __len__(self) -> int:
        return len(self.positions)


def _is_schema(tool: object) -> bool:
    return isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)


def check_selector(name: str) -> None:
    """Raises `UnknownSelectorError` for a name that no selector has."""
    if name not in get_args(SelectorName):
        raise UnknownSelectorError(
            f"There is no selector {name!r}. Known selectors: {', '.join(get_args(SelectorName))}."
        )


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How to answer: which KV, which tokens to recompute, and how to generate.

    kv: "fused" (isolated where no fused KV is true), "isolated", "prefix" (a prefix cache: only
    the KV of the ingest prefix, where the prompt begins with it), or "none", which is full
    attention by the model's own dense prefill. corrected: whether KV is fitted to where it stands
    in the prompt: a chunk that nothing stands before is taken isolated, others have added what
    ingest measured them to be off by, and what recomputed tokens turn out to be off by is carried
    over to those near them; False places it as it is stored. selector, ratio: which of the chunk
    tokens are recomputed, and how many. handles: of chunks that the prompt is known to
    hold; None among them, of documents without a handle, is passed over. scopes: whose KV may be
    used, None for every scope's; text of other scopes is computed like any unknown text.
    break_even: whether a prompt too short for reuse to pay is computed in full, where it was
    measured how long it must be (`fusionrag calibrate`).

    max_tokens: the longest answer. stop: strings that end it before them, found in the text as it
    is shown or with special tokens written out: they may hold one, or be a part of one.
    temperature: 0 is greedy; top_p, top_k (0 is no limit) and seed are for sampling above that.
    repetition_penalty: of tokens that the prompt or the answer holds, above 1 against them; None
    takes what the model's own generation config says, which holds for all that has no setting here.
    tools: what the model may call, as JSON schemas in OpenAI's form, worded by its chat template.
    raw: whether a prompt that is one string is the model's whole text, control tokens included;
    else the chat template makes a user's message of it, whose text spells none. None tells by
    whether the string begins and ends turns as the template does. Chunks in it are text either way.
    """

    kv: KVSource = "fused"
    corrected: bool = True
    selector: str = "fusionrag"
    ratio: float = 0.15
    handles: tuple[KVHandle, ...] = ()
    scopes: tuple[str, ...] | None = None
    break_even: bool = True
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    raw: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.tools, tuple) or not all(map(_is_schema, self.tools)):
            raise InvalidInputError(
                f"tools is {shown(self.tools)}; give a tuple of schemas in OpenAI's form, each "
                "{'type': 'function', 'function': {...}}."
            )
        if isinstance(self.handles, tuple):
            object.__setattr__(self, "handles", tuple(h for h in self.handles if h is not None))
        check_fields(self)
        check_selector(self.selector)
        if not 0.0 <= self.ratio <= 1.0:
            raise InvalidInputError(f"ratio is {self.ratio}; it must lie in [0, 1].")
        if self.max_tokens < 1:
            raise InvalidInputError(f"max_tokens is {self.max_tokens}; it must be at least 1.")
        if self.temperature and not LEAST_TEMPERATURE <= self.temperature < inf:
            raise InvalidInputError(
                f"temperature is {self.temperature}; it must be finite and at least "
                f"{LEAST_TEMPERATURE:g}, or 0 for greedy decoding."
            )
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidInputError(f"top_p is {self.top_p}; it must lie in (0, 1].")
        if self.top_k < 0:
            raise InvalidInputError(f"top_k is {self.top_k}; use 0 for no limit.")
        if self.seed is not None and not -SEEDS <= self.seed < SEEDS:
            raise InvalidInputError(f"seed is {self.seed}; it must fit 64 bits, with its sign.")
        if self.repetition_penalty is not None and not 0.0 < self.repetition_penalty < inf:
            raise InvalidInputError(
                f"repetition_penalty is {self.repetition_penalty}; it must be above 0. 1 is none."
            )
        if not all(self.stop):
            raise InvalidInputError(
                f"stop is {shown(self.stop)}; give a tuple of non-empty strings."
            )

    def changed(self, changes: Mapping[str, Any]) -> AnswerSettings:
        """These settings with some of them changed; `max_new_tokens` is `max_tokens`.

        Raises `InvalidInputError` for other names.
        """
        known = {f.name for f in fields(self)}
        changes = renamed(changes, known)
        refuse_unknown("AnswerSettings", changes, known)
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, eq=False)
class LayerView:
    """What some rows ask in one layer, and what is there to answer.

    queries: rotated, [Hq, R, D]. keys: rotated, [Hkv, N, D], by position. positions: the rows' own,
    [R]; each attends to the keys up to its own, with a window the last `window` of them. scaling:
    what the layer multiplies QK by, usually 1/sqrt(D).
    """

    queries: torch.Tensor
    keys: torch.Tensor
    positions: torch.Tensor
    window: int | None
    scaling: float

    def of_rows(self, rows: slice) -> LayerView:
        """What some of the rows ask."""
        return replace(self, queries=self.queries[:, rows], positions=self.positions[rows])


@dataclass(frozen=True, slots=True)
class Calibration:
    """How our own selector weighs its signals for one model; `calibrate.py` measures it.

    layers: whose attention says what a question needs, ascending. whole_sentences: whether a
    token counts as much as the best of its sentence. sensitivity: the exponent of what the
    context changes; 0 leaves it out.
    """

    layers: tuple[int, ...]
    whole_sentences: bool = False
    sensitivity: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise InvalidInputError(f"Layers are {self.layers}; give some from 0 on, ascending.")
        if not 0.0 <= self.sensitivity < inf:
            raise InvalidInputError(
                f"sensitivity is {self.sensitivity}; it can't be negative, and must be finite."
            )


class Layered(Protocol):
    """What is known of a model's layers."""

    @property
    def num_layers(self) -> int: ...

    @property
    def global_layers(self) -> tuple[int, ...]:
        """Layers whose attention reaches the whole prompt, not only a window of it."""
        ...


class Probe(Layered, Protocol):
    """Signals about a placed prompt that a selector may ask for; computed when asked, and timed."""

    def suffix(self, layers: Sequence[int]) -> list[LayerView]:
        """What the tokens behind the last chunk ask in these layers, over the placed KV.

        Runs the fresh tokens through the layers up to the last of these.
        """
        ...

    def watched_suffix(
        self, layers: Sequence[int], watched: Sequence[int]
    ) -> tuple[list[LayerView], torch.Tensor]:
        """As `suffix`, with some chunk tokens and all separators run along; and how far off those
        tokens' placed KV is.

        watched: the positions of chunk tokens, ascending. Off: squared distance relative to the
        squared size of what is computed, token by token, mean over keys and values, float32
        [max(layers) + 1, len(watched)]: in every layer that ran. Layer 0 depends on no context.
        """
        ...

    def early_deviation(self) -> torch.Tensor:
        """Squared distance of each chunk token's true K and V from those placed, at layer 1.

        float32 [C], in the order of `chunk_positions`. Runs layers 0 and 1 over the whole prompt;
        what they compute is exact, and recomputation goes on from there.
        """
        ...


class Selector(Protocol):
    """Chooses the chunk tokens worth recomputing. One method, no state between calls."""

    def select(self, prompt: AssembledPrompt, probe: Probe) -> TokenSelection:
        """The tokens to recompute, at most as many as its ratio allows."""
        ...


@dataclass(frozen=True, slots=True)
class TTFTBreakdown:
    """Where the time to first token went, in milliseconds.

    encode: template and tokens. match: finding chunks. load: reading KV, until the first layers
    are on their way. capture: computing that of new chunks. place: rotating and copying it; on CUDA
    only until that is queued. Where layers wait for KV, it counts to them.
    probe and select: choosing tokens. prefill: recomputing them and the fresh tokens (or, under
    full attention, everything). first_token: from logits to the token.
    """

    encode: float = 0.0
    match: float = 0.0
    load: float = 0.0
    capture: float = 0.0
    place: float = 0.0
    probe: float = 0.0
    select: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0

    @property
    def total(self) -> float:
        return float(sum(getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Usage:
    """How a prompt's tokens were obtained.

    prompt_tokens = reused + recomputed + captured + fresh. captured_tokens are of new chunks whose
    KV was computed and kept, and not recomputed. missed <= fresh counts the fresh tokens
    of known chunks whose KV was missing, corrupt or foreign. prefix_tokens <= reused counts those
    that a prefix cache held, which belong to no chunk. token_layers: the work before the
    first token, probes among it, as how often a layer ran over a token; full attention's is
    prompt_tokens x layers.
    """

    prompt_tokens: int
    reused_tokens: int
    recomputed_tokens: int
    fresh_tokens: int
    missed_tokens: int
    completion_tokens: int
    token_layers: int
    prefix_tokens: int = 0
    captured_tokens: int = 0

    @property
    def recompute_ratio(self) -> float:
        """Computed share of the chunk tokens that were found; 1.0 where none was reused."""
        computed = self.recomputed_tokens + self.captured_tokens
        found = self.reused_tokens - self.prefix_tokens + computed
        return computed / found if found else 1.0


Prompt = str | Sequence[Message]
