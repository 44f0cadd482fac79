"""FusionEngine: the object that a user creates. It opens a store with a model, and delegates."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from fusionrag_integrations.check import CheckReport, check_store
from fusionrag_integrations.documents.types import Document
from fusionrag_integrations.engine.answering import Answering
from fusionrag_integrations.engine.facts import EngineFacts
from fusionrag_integrations.engine.parts import DEFAULT_BUDGETS, EngineParts, model_class
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.ingest.neighbours import DEFAULT_NEIGHBOURS, NeighbourPolicy
from fusionrag_integrations.ingest.pipeline import Ingest, IngestReport
from fusionrag_integrations.serving.passes import Limits
from fusionrag_integrations.serving.serving_loop import ServingLoop
from fusionrag_integrations.store.calibration import Calibration
from fusionrag_integrations.store.deletion import delete_documents
from fusionrag_integrations.store.for_model import no_kv
from fusionrag_integrations.store.kv.base import KVFiles
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.kv.metrics import StoreMetrics
from fusionrag_integrations.store.kv.types import KeptKV, KVFormat
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.store.vector_index.base import GivenIndex
from fusionrag_integrations.support.inputs import checked
from fusionrag_integrations.support.progress import Progress
from fusionrag_integrations.support.renamed import Renamed
from fusionrag_integrations.support.threads import Closable, Threads


class FusionEngine(EngineFacts, Answering, Closable):
    """Ingests documents into a store, and answers prompts from the KV that is stored there.

    with FusionEngine.from_pretrained("model", store="my-store") as engine:  # closes it
        ...
    """

    corpus = Renamed("store")
    words_tools = Renamed("supports_tools")
    offer = Renamed("register_texts")

    def __init__(self, parts: EngineParts, *, owns_parts: bool = True) -> None:
        """owns_parts: whether closing this closes them. `from_pretrained` and `open` open them."""
        self.model = parts.executor.model
        self.store = parts.store
        self.kv = parts.kv
        self.calibration = parts.calibration
        self._parts = parts
        self._owns_parts = owns_parts
        self._ingest = Ingest(parts.store, parts.kv, parts.facts, self._check_usable)
        self.pipeline = parts.steps(parts.fuse_adhoc)
        self.serving = ServingLoop(
            self.pipeline, self.store.path, Limits.on(self.model, parts.request_bytes)
        )
        self.threads = Threads("fusionrag-calls", self.store.path)  # for async callers

    @classmethod
    @checked(leave=("index", "kv_files"))
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
        index: GivenIndex | None = None,
        kv_files: KVFiles | None = None,
        kv: KeptKV | None = None,
    ) -> FusionEngine:
        """Load a model and open the store at `store`, which is created where there is none.

        store: a directory; or a URL that fsspec can open, such as s3://bucket/prefix, for a store
        that several machines share. model_name_or_path: a directory, a .gguf file or a hub name.
        device: "auto" is CUDA if available. dtype: "auto", "float32", "bfloat16" or "float16".
        embedding: a LangChain `Embeddings`, a LlamaIndex `BaseEmbedding`, or None for the built-in
        lexical one. chunk_tokens: the longest chunk, in tiktoken tokens, fixed when the store is
        created (default 256). kv_format: how KV is stored, fixed too: "float32", "float16",
        "bfloat16", "int8" or "int4" (default: the model's dtype). salt: a secret of this store's
        owner that every key depends on; the same one is needed each time. budgets: bytes of KV, by
        where it is and what for. gguf_file: the name of a GGUF file in the directory or hub
        repository. index: a `VectorIndex`, a client of chromadb's or one of its collections. index,
        kv_files: used instead of the vector index and the KV files in the directory; the caller
        closes them. kv: "none" computes and keeps no KV: each prompt is answered by the model's own
        full attention, so that any model can be used, also one whose KV can't be reused; fixed when
        the store is created (default "fused").

        Raises `UnsupportedModelError`, `InvalidInputError` where there is no such model, and
        `StoreMismatchError` where the store was created with other options.
        """
        model = model_class(store, kv).load(model_name_or_path, device, dtype, gguf_file)
        return cls.open(
            model,
            store,
            embedding=embedding,
            chunk_tokens=chunk_tokens,
            kv_format=kv_format,
            salt=salt,
            budgets=budgets,
            index=index,
            kv_files=kv_files,
        )

    @classmethod
    @checked(leave=("model", "tokenizer", "index", "kv_files"))
    def from_model(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        store: str | Path,
        embedding: object | None = None,
        chunk_tokens: int | None = None,
        kv_format: KVFormat | None = None,
        salt: str = "",
        budgets: Budgets = DEFAULT_BUDGETS,
        index: GivenIndex | None = None,
        kv_files: KVFiles | None = None,
        kv: KeptKV | None = None,
    ) -> FusionEngine:
        """Like `from_pretrained`, with a model of transformers that is loaded already.

        model: a `PreTrainedModel`, or peft's `PeftModel` around one; KV belongs to the adapters
        that act in it. It stays on its device and as it is quantised; its attention becomes this
        package's (see `CausalModel`), unless this raises or no KV is kept.
        """
        loaded = model_class(store, kv).of(model, tokenizer)
        with ExitStack() as unless_opened:
            unless_opened.callback(loaded.give_back)
            engine = cls.open(
                loaded,
                store,
                embedding=embedding,
                chunk_tokens=chunk_tokens,
                kv_format=kv_format,
                salt=salt,
                budgets=budgets,
                index=index,
                kv_files=kv_files,
            )
            unless_opened.pop_all()
        return engine

    @classmethod
    @checked(leave=("index", "kv_files"))
    def open(
        cls,
        model: PlainModel,
        store: str | Path,
        *,
        embedding: object | None = None,
        chunk_tokens: int | None = None,
        kv_format: KVFormat | None = None,
        salt: str = "",
        budgets: Budgets = DEFAULT_BUDGETS,
        index: GivenIndex | None = None,
        kv_files: KVFiles | None = None,
    ) -> FusionEngine:
        """Like `from_pretrained`, with a model that is loaded already.

        model: a `CausalModel`; or a `PlainModel`, for a store that keeps no KV.
        """
        parts = EngineParts.open(
            model,
            store,
            embedding=embedding,
            chunk_tokens=chunk_tokens,
            kv_format=kv_format,
            salt=salt,
            budgets=budgets,
            index=index,
            kv_files=kv_files,
        )
        with ExitStack() as unless_made:
            engine = cls(unless_made.enter_context(parts))
            unless_made.pop_all()
            return engine

    @property
    def executor(self) -> Executor:
        """What runs the model over KV. Raises `InvalidInputError` where the store keeps none."""
        if not isinstance(self._parts.executor, Executor):
            raise no_kv(self.store.path)
        return self._parts.executor

    @checked()
    def calibrated(self, calibration: Calibration | None) -> FusionEngine:
        """An engine over the same store, whose selector "fusionrag" uses `calibration`.

        It ends with this one; closing it leaves this one open.
        """
        self._check_usable()
        return FusionEngine(replace(self._parts, calibration=calibration), owns_parts=False)

    def __deepcopy__(self, memo: object) -> Self:
        """Copies of a model or retriever share its engine: files and threads can't be copied."""
        return self

    def close(self) -> None:
        """Release the store: files, threads and the memory of its tiers. May be called again.

        Waits until ad-hoc chunks are stored, and searches and the pass under way have ended, unless
        one of those calls it, such as an embedding of yours. Answers in progress and the next step
        of an ingest raise `StoreClosedError`, and so does any later use of the engine, or of
        retrievers and models over it.
        """
        self.serving.close()
        self.pipeline.close()
        self.threads.close()
        if self._owns_parts:
            self._parts.close()

    def _check_usable(self) -> None:
        """Raises `StoreClosedError` once this is closed, else as `CausalModel.check_usable`."""
        self.pipeline.check_open()
        self.model.check_usable()

    @checked(leave=("documents",))
    def ingest(
        self,
        documents: Iterable[Document],
        *,
        delete_others: bool = False,
        neighbours: NeighbourPolicy = DEFAULT_NEIGHBOURS,
        progress: Progress | None = None,
    ) -> IngestReport:
        """Add documents, or replace those whose ids are known, and compute the KV that is missing.

        delete_others: afterwards, delete the store's documents that are not among these.
        neighbours: behind which chunks a chunk's KV is fused; existing fused KV isn't changed.

        May be interrupted at any moment and called again: nothing is computed twice, and what was
        indexed before stays usable. A document that fails ends the ingest; those before it stay
        in the store, and nothing is deleted. Raises `StoreError` while another process changes
        the same store, or where it can't be written.
        """
        self._check_usable()
        work = self._parts.ingest_work()
        return self._ingest.run(work, documents, delete_others, neighbours, progress)

    @checked(leave=("store",))
    def copy_from(
        self,
        store: Store,
        *,
        neighbours: NeighbourPolicy = DEFAULT_NEIGHBOURS,
        progress: Progress | None = None,
    ) -> IngestReport:
        """Make this store's documents those of another one, which any model may have made.

        Their chunks and vectors are kept; tokens and KV are computed. Raises as `ingest` does, and
        `InvalidInputError` for a chunk that the model's context can't hold.
        """
        self._check_usable()
        return self._ingest.copy(self._parts.ingest_work(), store, neighbours, progress)

    @checked()
    def delete(self, document_ids: Iterable[str], *, scope: str = "") -> int:
        """Delete documents with all KV computed from or behind them; returns how many there were.

        scope: theirs; a document of another scope with the same id stays. Chunks that had a
        deleted one as neighbour are served isolated until the next ingest. Raises
        `InvalidInputError` for a single string, whose characters could be taken for ids.
        """
        self._check_usable()
        return delete_documents(self.store, self.kv, document_ids, scope)

    def refresh(self) -> bool:
        """Bring a store at a URL to its newest version; returns whether there was a newer one.

        Requests that are at work end as they began. Raises as `Store.refresh`.
        """
        self._check_usable()
        return self.store.refresh()

    def metrics(self) -> StoreMetrics:
        """The contents of the tiers of KV, and counts since the engine was opened."""
        self._check_usable()
        return self.kv.metrics()

    @checked(leave=("estimate",))
    def check(
        self,
        questions: int = 20,
        *,
        estimate: Iterable[Document] | None = None,
        progress: Progress | None = None,
    ) -> CheckReport:
        """Whether reuse is exact, close and fast with this model and store; needs no labels.

        Asks at most `questions`, made from the store's chunks, and changes nothing. estimate:
        documents whose ingest into such a store is to be estimated. Raises `InvalidInputError` for
        a store without chunks, or without KV.
        """
        self._check_usable()
        return check_store(self, questions, estimate, self._ingest.until_closed(progress))
