"""FusionEngine: the object that a user makes. It opens a store with a model, and delegates."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

from fusionrag_integrations.answer import Answer, AnswerStream
from fusionrag_integrations.calibration import (
    CALIBRATION_FILE,
    read_break_even,
    read_calibration,
)
from fusionrag_integrations.catalog import StoreInfo
from fusionrag_integrations.check import CheckReport, check_store, estimate_ingest
from fusionrag_integrations.chunking import Chunker
from fusionrag_integrations.corpus import KV_DIRECTORY, Corpus, Progress
from fusionrag_integrations.corrections import Corrections
from fusionrag_integrations.embedding import as_embedder
from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreError,
    StoreMismatchError,
    StoreNotFoundError,
)
from fusionrag_integrations.ingest import Ingest, IngestReport, delete_documents
from fusionrag_integrations.inputs import checked
from fusionrag_integrations.keys import salt_id
from fusionrag_integrations.model import CausalModel, device_name
from fusionrag_integrations.neighbours import DEFAULT_NEIGHBOURS, NeighbourPolicy
from fusionrag_integrations.prompt import (
    SEPARATOR,
    ingest_prefix,
    ingest_surroundings,
    words_tools,
)
from fusionrag_integrations.recompute import resident
from fusionrag_integrations.records import FORMAT_VERSION
from fusionrag_integrations.serve import Server
from fusionrag_integrations.store import Budgets, FileKVStore, StoreMetrics, TieredKV, format_of
from fusionrag_integrations.threads import Closable, Threads
from fusionrag_integrations.types import (
    AnswerSettings,
    Calibration,
    ChunkRecord,
    Document,
    KVFormat,
    KVHandle,
    LoadedPrompt,
    Prompt,
)

DEFAULT_CHUNK_TOKENS = 256
DEFAULT_BUDGETS = Budgets()

logger = logging.getLogger(__name__)


class FusionEngine(Closable):
    """Ingests documents into a store, and answers prompts from the KV that it keeps there.

    A context manager, which is closed at its end:

        with FusionEngine.from_pretrained("model", store="my-store") as engine:
            ...
    """

    def __init__(
        self,
        model: CausalModel,
        corpus: Corpus,
        kv: TieredKV,
        prefix: str,
        calibration: Calibration | None = None,
        break_even: int = 0,
    ) -> None:
        self.corpus = corpus
        self.model = model
        self.calibration = calibration
        self._kv = kv
        self._prefix = prefix
        self._break_even = break_even
        self._prefix_ids = tuple(self.encode(prefix))
        self._corrections = Corrections(corpus.path, corpus.catalog)
        self._server = Server(
            model,
            corpus.catalog,
            kv,
            self._prefix_ids,
            self._corrections,
            calibration,
            break_even,
            on_hot=self._fuse_captured,
        )
        self.threads = Threads("fusionrag-answer", corpus.path)  # what event loops wait for
        self._owns_store = True

    @classmethod
    @checked()
    def from_pretrained(
        cls,
        model_name_or_path: str | Path,
        *,
        store: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        embedding: object | None = None,
        chunk_tokens: int | None = None,
        kv_format: KVFormat | None = None,
        salt: str = "",
        budgets: Budgets = DEFAULT_BUDGETS,
        gguf_file: str | None = None,
    ) -> FusionEngine:
        """Load a model and open the store at `store`, which is made where there is none.

        model_name_or_path: a directory, a .gguf file or a hub name. device: "auto" takes CUDA
        where there is one. dtype: "auto", "float32", "bfloat16" or "float16". embedding: a
        LangChain `Embeddings`, a LlamaIndex `BaseEmbedding`, or None for the built-in lexical
        one. chunk_tokens: the longest chunk, in tiktoken tokens, fixed when the store is made
        (default 256). kv_format: how KV is kept, fixed too: "float32", "float16", "bfloat16",
        "int8" or "int4" (default: the model's dtype). salt: a secret of this store's owner that
        every key depends on; the same one is needed each time. budgets: bytes of KV on the
        device, in host memory and on disk. gguf_file: the name of a GGUF file in the directory
        or hub repository.

        Raises `UnsupportedModelError`, `InvalidInputError` where there is no such model, and
        `StoreMismatchError` where the store was made otherwise.
        """
        model = CausalModel.load(model_name_or_path, device, dtype, gguf_file)
        return cls.open(
            model,
            store,
            embedding=embedding,
            chunk_tokens=chunk_tokens,
            kv_format=kv_format,
            salt=salt,
            budgets=budgets,
        )

    @classmethod
    @checked()
    def open(
        cls,
        model: CausalModel,
        store: str | Path,
        *,
        embedding: object | None = None,
        chunk_tokens: int | None = None,
        kv_format: KVFormat | None = None,
        salt: str = "",
        budgets: Budgets = DEFAULT_BUDGETS,
    ) -> FusionEngine:
        """Like `from_pretrained`, with a model that is loaded already."""
        prefix = ingest_prefix(model.tokenizer)
        signature = model.signature(ingest_surroundings(model.tokenizer))
        path = Path(store)
        corpus: Corpus | None = None
        with suppress(StoreNotFoundError):
            corpus = Corpus.open(path, embedding)
        if corpus is None:
            chunker = Chunker(DEFAULT_CHUNK_TOKENS if chunk_tokens is None else chunk_tokens)
            info = StoreInfo(
                format_version=FORMAT_VERSION,
                signature=signature,
                model_source=model.source,
                embedding=as_embedder(embedding).name,
                chunk_tokens=chunker.chunk_tokens,
                kv_format=kv_format or format_of(model.dtype),
                salt_id=salt_id(salt),
            )
            corpus = Corpus.create(path, info, embedding)
        with ExitStack() as opened:
            opened.enter_context(corpus)
            _check_same(corpus, model.source, signature, chunk_tokens, kv_format, salt_id(salt))
            engine = cls._over(model, corpus, prefix, signature, budgets)
            opened.pop_all()
        return engine

    @classmethod
    def _over(
        cls, model: CausalModel, corpus: Corpus, prefix: str, signature: str, budgets: Budgets
    ) -> FusionEngine:
        beside_weights = (model.directory / CALIBRATION_FILE).resolve()  # the hub's cache has links
        measured = [corpus.path / CALIBRATION_FILE, beside_weights]
        calibration = _calibration(measured, model, signature)
        device = device_name(model.device)
        lengths = [read_break_even(file, signature, device) for file in measured]
        break_even = next(filter(None, lengths), 0)
        info = corpus.catalog.info
        files = FileKVStore(corpus.path / KV_DIRECTORY, info.record_signature, info.kv_format)
        kv = TieredKV(files, budgets, model.device, partial(resident, model))
        return cls(model, corpus, kv, prefix, calibration, break_even)

    @checked()
    def calibrated(self, calibration: Calibration | None) -> FusionEngine:
        """An engine over the same store whose own selector works as `calibration` says.

        Closing this one closes the other, but not the other way round.
        """
        self._check_usable()
        other = FusionEngine(
            self.model, self.corpus, self._kv, self._prefix, calibration, self._break_even
        )
        other._owns_store = False
        return other

    def __deepcopy__(self, memo: object) -> Self:
        """Copies of a model or retriever share its engine: files and threads have no copies."""
        return self

    def close(self) -> None:
        """Release the store: files, threads and the memory of its tiers. May be called again.

        Waits until what came with questions is kept, and reads and awaited requests have ended, but
        not where one of those calls it: an embedding of yours, say. An
        answer or an ingest that is under way raises `StoreClosedError` at its next step, and so
        does whatever is asked of the engine afterwards, or of retrievers and models over it.
        """
        self._server.close()
        self.threads.close()
        if self._owns_store:
            self._kv.close()
            self.corpus.close()

    def _check_usable(self) -> None:
        """Raises `StoreClosedError` once this is closed, `StoreError` on a GPU after a fork."""
        self._server.check_open()
        self.model.check_process()

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
        """Whether the model's tokenizer words chat messages."""
        return self.model.tokenizer.chat_template is not None

    @property
    def words_tools(self) -> bool:
        """Whether the model's chat template has words for tools that it may call."""
        return words_tools(self.model.tokenizer)

    @checked()
    def encode(self, text: str) -> list[int]:
        """Token ids of `text` by the model's own tokenizer, without special tokens."""
        ids: list[int] = self.model.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    @checked(leave=("prompt",))
    def count_tokens(
        self,
        prompt: Prompt,
        tools: Sequence[Mapping[str, Any]] = (),
        raw: bool | None = None,
    ) -> int:
        """Tokens that the model reads of a prompt, its chat template's and tools' among them.

        raw: as in `AnswerSettings`. Raises as `answer` does for a prompt that can't be.
        """
        settings = AnswerSettings(tools=tuple(tools), raw=raw)
        return len(self._server.encode(prompt, settings).token_ids)

    @checked(leave=("documents",))
    def ingest(
        self,
        documents: Iterable[Document],
        *,
        delete_others: bool = False,
        neighbours: NeighbourPolicy = DEFAULT_NEIGHBOURS,
        progress: Progress | None = None,
    ) -> IngestReport:
        """Add documents, or replace those whose ids are known, and compute what KV is missing.

        delete_others: afterwards, delete the store's documents that are not among these.
        neighbours: behind which chunks a chunk's KV is fused. What is fused already stays so.

        May be interrupted at any moment and called again: nothing that is there is computed
        twice, and what was indexed before keeps serving. A document that fails ends the ingest;
        those before it are kept, and nothing is deleted. Raises `StoreError` while another
        process changes the same store, or where it can't be written.
        """
        self._check_usable()
        with self.corpus.writing():
            return self._ingest(neighbours, progress).run(documents, delete_others)

    def _ingest(self, neighbours: NeighbourPolicy, progress: Progress | None) -> Ingest:
        return Ingest(
            self.model,
            self.corpus,
            self._kv,
            self._prefix_ids,
            tuple(self.encode(SEPARATOR)),
            self._corrections,
            neighbours,
            self._until_closed(progress or (lambda stage, done, total: None)),
        )

    def _until_closed(self, progress: Progress) -> Progress:
        """So that long work ends where another thread closes the engine."""

        def told(stage: str, done: int, total: int) -> None:
            self._check_usable()
            progress(stage, done, total)

        return told

    @checked()
    def delete(self, document_ids: Iterable[str], *, scope: str = "") -> int:
        """Delete documents with all KV made from or with them; returns how many there were.

        scope: theirs; a document of another with the same id stays. Chunks that had a deleted one
        as neighbour are served isolated until the next ingest. Raises `InvalidInputError` for a
        single string, whose letters would pass for ids.
        """
        self._check_usable()
        return delete_documents(self.corpus, self._kv, document_ids, scope)

    @checked(leave=("prompt",))
    def answer(self, prompt: Prompt, settings: AnswerSettings | None = None) -> Answer:
        """Answer a prompt: a string, or chat messages for the tokenizer's template.

        Raises `InvalidInputError` (an empty prompt, an unknown selector) and
        `PromptTooLongError`. KV that is missing, damaged or foreign is never served: its tokens
        are computed afresh, and counted in the answer.
        """
        return self.stream(prompt, settings).read()

    @checked()
    def prefetch(self, handles: Iterable[KVHandle]) -> None:
        """Begin to load the KV of chunks that a prompt is about to hold; returns at once.

        handles: in the prompt's order, as far as it is known: its first chunk is taken isolated.
        """
        self._check_usable()
        given = list(handles)
        first = [handle.isolated_key for handle in given[:1]]
        rest = [handle.fused_key or handle.isolated_key for handle in given]
        self._kv.prefetch([*first, *rest])

    @checked()
    def offer(self, texts: Iterable[str], *, scope: str = "") -> None:
        """Texts that prompts may hold from now on and that were not ingested, such as an upload's.

        One that comes up again, or while there is room to spare, has its KV kept for later
        requests; no search finds it. scope: whose requests may use it, and behind whose chunks it
        is fused once it is used often.
        """
        self._check_usable()
        self._server.offer(texts, scope)

    def metrics(self) -> StoreMetrics:
        """What the tiers of KV hold, and what they have done since the engine was opened."""
        self._check_usable()
        return self._kv.metrics()

    @checked(leave=("estimate",))
    def check(
        self,
        questions: int = 20,
        *,
        estimate: Iterable[Document] | None = None,
        progress: Progress | None = None,
    ) -> CheckReport:
        """Whether reuse is exact, close and quick with this model and store; needs no labels.

        Asks questions made from the store's chunks, at most so many, and changes nothing. estimate:
        documents of which to say what ingesting them into such a store would take. Raises
        `InvalidInputError` for a store without chunks.
        """
        self._check_usable()
        told = self._until_closed(progress or (lambda stage, done, total: None))
        estimated = None
        if estimate is not None:
            info = self.corpus.catalog.info
            estimated = estimate_ingest(
                self.model, estimate, info.chunk_tokens, info.kv_format, told
            )
        return check_store(self, questions, estimated, told)

    def _fuse_captured(self, record: ChunkRecord) -> None:
        """Fuse a chunk that came with requests, unless the store is being changed."""
        try:
            with self.corpus.writing():
                self._ingest(DEFAULT_NEIGHBOURS, None).fuse_captured(record)
        except StoreError as error:  # be it that the engine is being closed
            logger.info("A captured chunk stays isolated for now: %s", error)

    @checked(leave=("prompt",))
    def load(self, prompt: Prompt, settings: AnswerSettings | None = None) -> LoadedPrompt:
        """A prompt with the KV that `answer` would place for it, to look into."""
        self._check_usable()
        return self._server.load(prompt, settings or AnswerSettings())

    @checked(leave=("prompt",))
    def stream(self, prompt: Prompt, settings: AnswerSettings | None = None) -> AnswerStream:
        """Like `answer`, as an iterator over pieces of text. Work begins with the first.

        `async for` and `await stream.aread()` do the work in threads; cancelled, it ends.
        """
        self._check_usable()
        events = self._server.run(prompt, settings or AnswerSettings())
        return AnswerStream(events, self.threads)


def corpus_of(engine: FusionEngine | None, corpus: Corpus | None) -> Corpus:
    """What a retriever searches: the engine's corpus, or one opened without a model.

    Raises `InvalidInputError` unless exactly one of them is given.
    """
    if engine is not None and corpus is None:
        return engine.corpus
    if corpus is not None and engine is None:
        return corpus
    raise InvalidInputError(
        "A FusionKVRetriever needs either an engine or a corpus: FusionKVRetriever(engine=engine), "
        "or FusionKVRetriever.from_store(path) to retrieve without loading a model."
    )


def _calibration(files: Iterable[Path], model: CausalModel, signature: str) -> Calibration | None:
    """The first calibration for the model that one of the files holds."""
    for path in files:
        if found := read_calibration(path, signature):
            if found.layers[-1] >= model.num_layers:
                raise InvalidInputError(
                    f"The calibration {path} names layer {found.layers[-1]}; {model.name} has "
                    f"layers 0 to {model.num_layers - 1}. Delete it and calibrate again."
                )
            return found
    return None


def _check_same(
    corpus: Corpus,
    model: str,
    signature: str,
    chunk_tokens: int | None,
    kv_format: KVFormat | None,
    salt: str,
) -> None:
    info = corpus.catalog.info
    if info.format_version != FORMAT_VERSION:
        raise StoreMismatchError(
            f"The store at {corpus.path} has format {info.format_version}; this version reads "
            f"format {FORMAT_VERSION}. Index the documents into a new store."
        )
    if info.signature != signature:
        raise StoreMismatchError(
            f"The store at {corpus.path} was made by {info.model_source} (signature "
            f"{info.signature}), not by {model} (signature {signature}): weights, dtype, "
            "tokenizer or RoPE configuration differ. Load that model or make a new store."
        )
    if chunk_tokens is not None and chunk_tokens != info.chunk_tokens:
        raise InvalidInputError(
            f"The store at {corpus.path} has chunks of up to {info.chunk_tokens} tokens; "
            f"chunk_tokens={chunk_tokens} needs a new store."
        )
    if kv_format is not None and kv_format != info.kv_format:
        raise InvalidInputError(
            f"The store at {corpus.path} keeps KV as {info.kv_format}; kv_format={kv_format!r} "
            "needs a new store."
        )
    if salt != info.salt_id:
        raise StoreMismatchError(
            f"The store at {corpus.path} was made with {'another' if info.salt_id else 'no'} salt. "
            "Open it with its own, or make a new store."
        )
