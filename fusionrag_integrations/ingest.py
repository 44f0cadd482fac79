"""Documents -> chunks -> stored KV: the order of the offline steps.

Each step looks at what is there and makes what is missing, so an interrupted ingest goes on
where it stopped, and what was indexed before stays usable throughout:

catalog    chunks are embedded; a changed document replaces its old chunks, and fused KV made with
           those is let go
embed      what an interrupted ingest left undone in the vector index
isolated   KV of every chunk that has none
fused      KV behind each chunk's neighbours, then the catalog entry that makes it count
correct    what fused KV is off by in prompts, measured on a few of the store's own chunks
collect    records that no chunk uses any more are deleted
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from time import perf_counter
from typing import Literal, Protocol, TypeVar

from fusionrag_integrations import mixtures
from fusionrag_integrations.chunk_kv import Fusion, fuse_chunks, prefill_chunks, prefill_prefix
from fusionrag_integrations.chunking import Chunker
from fusionrag_integrations.corpus import EMBEDDING_BATCH, Corpus, Progress, Update
from fusionrag_integrations.corrections import Corrections, ScopeCorrection
from fusionrag_integrations.errors import InvalidInputError, KVRecordError
from fusionrag_integrations.inputs import checked_value, holds_several
from fusionrag_integrations.keys import fused_key, isolated_key, metadata_json
from fusionrag_integrations.model import CausalModel
from fusionrag_integrations.neighbours import MAX_NEIGHBOUR_TOKENS, Candidates, NeighbourPolicy
from fusionrag_integrations.prompt import encode_chunk
from fusionrag_integrations.store import TieredKV
from fusionrag_integrations.types import (
    Chunk,
    ChunkKV,
    ChunkRecord,
    ContextTrace,
    Document,
    DocumentKey,
)

logger = logging.getLogger(__name__)

FUSE_BATCH = 256  # chunks whose neighbours are looked up in one query of the index
PASS_TOKENS = 512  # of chunks that are computed together; more rows are multiplied no faster
OUTGROWN = 2  # a correction is measured anew once its scope has this many times its chunks
NEIGHBOURS_IN_MEMORY = 128  # isolated KV kept while fusing: similar chunks share neighbours

Item = TypeVar("Item")
Change = Literal["new", "changed", "unchanged"]


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did. Chunks whose KV was there already are not computed again.

    without_room: chunks that have no KV, since the disk's budget is full.
    """

    documents_new: int
    documents_changed: int
    documents_unchanged: int
    documents_deleted: int
    chunks: int
    isolated_computed: int
    fused_computed: int
    seconds: float
    without_room: int = 0


@dataclass(frozen=True, slots=True)
class _Fusing:
    """A chunk and those behind which it is to be fused."""

    record: ChunkRecord
    neighbours: tuple[ChunkRecord, ...]

    @property
    def key(self) -> str:
        return fused_key(self.record.isolated_key, [n.isolated_key for n in self.neighbours])


class Ingest:
    """One run over a store; the caller makes sure that no other runs at the same time."""

    def __init__(
        self,
        model: CausalModel,
        corpus: Corpus,
        store: TieredKV,
        prefix_ids: tuple[int, ...],
        separator_ids: tuple[int, ...],
        corrections: Corrections,
        neighbours: NeighbourPolicy,
        progress: Progress,
    ) -> None:
        """prefix_ids: before every chunk. separator_ids: between a chunk and its neighbours."""
        self._model = model
        self._corpus = corpus
        self._catalog = corpus.catalog
        self._store = store
        self._prefix = prefill_prefix(model, prefix_ids)
        self._separator = separator_ids
        self._signature = corpus.catalog.info.record_signature
        self._corrections = corrections
        self._policy = neighbours
        self._progress = progress
        self._full = False  # whether the disk's budget has no room for more

    @cached_property
    def _stored(self) -> set[str]:
        """Keys of stored KV: one listing costs less than a question a record."""
        return set(self._store.keys())

    def run(self, documents: Iterable[Document], delete_others: bool) -> IngestReport:
        """Bring the store up to date with `documents`.

        Others in it stay as they are, or are deleted once all of `documents` are in.
        """
        started = perf_counter()
        with self._corpus.change(lambda: collect_garbage(self._corpus, self._store)):
            changes = self._update_catalog(documents)
            deleted = 0
            if delete_others:
                others = set(self._catalog.documents()) - changes.keys()
                deleted = self._corpus.delete(sorted(others))
            self._corpus.embed_missing(self._progress)
            isolated = self._make_isolated()
            fused = self._make_fused()
            self._measure_corrections()
            collect_garbage(self._corpus, self._store)
        if self._full:
            logger.warning("The disk's budget is full: some chunks' KV was not kept.")
        counts = Counter(changes.values())
        return IngestReport(
            documents_new=counts["new"],
            documents_changed=counts["changed"],
            documents_unchanged=counts["unchanged"],
            documents_deleted=deleted,
            chunks=len(self._catalog.chunk_ids()),
            isolated_computed=isolated,
            fused_computed=fused,
            seconds=perf_counter() - started,
            without_room=self._without_kv() if self._full else 0,
        )

    def _update_catalog(self, documents: Iterable[Document]) -> dict[DocumentKey, Change]:
        """What became of each document. A later one replaces one of the same id and scope."""
        if not holds_several(documents):
            raise InvalidInputError(
                f"Give ingest a list of documents; got a single {type(documents).__name__}."
            )
        chunker = Chunker(self._catalog.info.chunk_tokens)
        changes: dict[DocumentKey, Change] = {}
        waiting: list[Update] = []
        total = len(documents) if isinstance(documents, Sized) else None
        try:
            for count, document in enumerate(documents, start=1):
                self._progress("catalog", count, total or count)
                if not isinstance(document, Document):
                    raise InvalidInputError(
                        f"A {type(document).__module__}.{type(document).__name__} can't be "
                        "ingested; give this package's Document. The adapters' to_documents "
                        "makes it of the frameworks' own."
                    )
                key = document.key
                if key in changes:
                    self._replace(waiting)
                content = _content_hash(document)
                before = self._catalog.document_hash(key)
                if before == content:
                    changes.setdefault(key, "unchanged")
                    continue
                records = tuple(self._record(chunk) for chunk in chunker.split(document))
                waiting.append(Update(document, content, records))
                changes.setdefault(key, "new" if before is None else "changed")
                if sum(len(update.records) for update in waiting) >= EMBEDDING_BATCH:
                    self._replace(waiting)
        except InvalidInputError:  # those before the one that can't be used are kept
            self._replace(waiting)
            raise
        self._replace(waiting)
        return changes

    def _replace(self, waiting: list[Update]) -> None:
        self._corpus.replace(waiting)
        waiting.clear()

    def _record(self, chunk: Chunk) -> ChunkRecord:
        encoded = encode_chunk(self._model.tokenizer, chunk)
        needed = len(self._prefix.token_ids) + len(encoded.token_ids)
        if needed > self._model.context_window:
            raise InvalidInputError(
                f"Chunk {chunk.index} of document {chunk.document_id!r} needs {needed} tokens with "
                f"the ingest prefix; the model's context holds {self._model.context_window}. "
                "Make a store with a smaller chunk_tokens."
            )
        key = isolated_key(encoded.token_ids, self._signature, chunk.scope)
        return ChunkRecord(encoded, key)

    def _without_kv(self) -> int:
        return sum(isolated not in self._stored for _, isolated, _ in self._catalog.kv_keys())

    def _make_isolated(self) -> int:
        missing = {
            isolated: chunk_id
            for chunk_id, isolated, _ in self._catalog.kv_keys()
            if isolated not in self._stored
        }
        records = (self._catalog.records([chunk])[chunk] for chunk in missing.values())
        done = 0
        for batch in _batches(records, lambda record: record):
            self._progress("isolated", done, len(missing))
            self._prefill_isolated(batch)
            done += len(batch)
            if self._full:
                break
        self._progress("isolated", len(missing), len(missing))
        return done

    def _prefill_isolated(self, records: Sequence[ChunkRecord]) -> list[ChunkKV]:
        tokens = {record.isolated_key: record.encoded.token_ids for record in records}
        kvs = prefill_chunks(self._model, self._prefix, tokens)
        for kv in kvs:
            self._put(kv)
        return kvs

    def _put(self, kv: ChunkKV) -> None:
        if self._store.put(kv):
            self._stored.add(kv.key)
        else:
            self._full = True

    def _make_fused(self) -> int:
        lost = [
            chunk_id
            for chunk_id, _, fused in self._catalog.kv_keys()
            if fused and fused not in self._stored
        ]
        unfused = [*self._catalog.unfused(), *lost]
        traced = self._catalog.traced_keys()
        touched: set[DocumentKey] = set()
        load = lru_cache(NEIGHBOURS_IN_MEMORY)(self._load_isolated)
        computed = 0
        for batch in _batches(self._to_fuse(unfused), lambda fusing: fusing.record):
            missing = {
                fusing.key: fusing
                for fusing in batch
                if fusing.key not in self._stored or fusing.key not in traced
            }
            traces = self._fuse(missing, load)
            for fusing in batch:
                chunk_id, key = fusing.record.chunk.id, fusing.key
                neighbours = [neighbour.chunk.id for neighbour in fusing.neighbours]
                if key in self._stored:
                    self._catalog.set_fused(chunk_id, key, neighbours, traces.get(key))
                    touched.add(fusing.record.chunk.document)
            traced |= traces.keys()
            computed += len(missing)
            if self._full:
                break
        self._corpus.note_links(sorted(touched))
        self._progress("fused", len(unfused), len(unfused))
        return computed

    def _fuse(
        self, missing: Mapping[str, _Fusing], load: Callable[[str], ChunkKV]
    ) -> dict[str, ContextTrace]:
        """Compute and store these, by key; what fusing showed of each."""
        fusions = [
            Fusion(
                key,
                load(fusing.record.chunk.id),
                tuple(load(neighbour.chunk.id) for neighbour in fusing.neighbours),
            )
            for key, fusing in missing.items()
        ]
        traces = {}
        for fused, trace in fuse_chunks(self._model, self._prefix, fusions, self._separator):
            self._put(fused)
            traces[fused.key] = trace
        return traces

    def _to_fuse(self, chunk_ids: Sequence[str]) -> Iterator[_Fusing]:
        """The chunks with their neighbours; without those that have none."""
        for start in range(0, len(chunk_ids), FUSE_BATCH):
            asked = chunk_ids[start : start + FUSE_BATCH]
            similar = self._corpus.similar(asked, self._policy.similar)
            for count, chunk_id in enumerate(asked, start=start):
                self._progress("fused", count, len(chunk_ids))
                record = self._catalog.record(chunk_id)
                if record is None:
                    continue
                near = self._catalog.records(similar[chunk_id])
                neighbours = self._neighbours(record, list(near.values()))
                if neighbours:
                    yield _Fusing(record, tuple(neighbours))

    def _neighbours(self, record: ChunkRecord, similar: list[ChunkRecord]) -> list[ChunkRecord]:
        window = self._model.context_window
        most = self._policy.similar + self._policy.predecessors
        around = len(self._prefix.token_ids) + most * len(self._separator)
        room = window - around - len(record.encoded.token_ids)
        return self._policy.choose(
            Candidates(
                record,
                self._catalog.predecessors(record.chunk.id, self._policy.predecessors),
                similar,
                max_tokens=min(MAX_NEIGHBOUR_TOKENS, window // 2, room),
            )
        )

    def _measure_corrections(self) -> None:
        """Measure each scope's correction, if there is none, or the scope has grown much since."""
        self._corrections.remove_stale()
        for scope in self._catalog.scopes():
            fused = self._catalog.fused_ids(scope)
            known = self._corrections.read(scope)
            wanted = mixtures.count_of(len(fused))
            if not wanted or (known and len(fused) <= known.chunks * OUTGROWN):
                continue
            try:
                self._corrections.write(scope, self._measure_correction(fused, wanted))
            except KVRecordError as error:
                logger.warning("A scope's correction is left for the next ingest: %s", error)

    def _measure_correction(self, fused: Sequence[str], count: int) -> ScopeCorrection:
        asked = mixtures.seeds(fused, count)
        near = self._corpus.similar(asked, mixtures.CHUNKS - 1)
        prompts = []
        for seed in asked:
            records = self._catalog.records([seed, *near[seed]]).values()
            usable = [record for record in records if record.fused_key]
            prompts.append(mixtures.mixed(usable, self._model.context_window))
        correction, chunk_ids = mixtures.measure_correction(
            self._model,
            prompts,
            lambda record: self._store.get(record.fused_key).dense(),
            lambda done, total: self._progress("correct", done, total),
        )
        return ScopeCorrection(correction, chunk_ids, len(fused))

    def fuse_captured(self, record: ChunkRecord) -> None:
        """Fuse a chunk that came with a request behind the ingested ones most similar to it."""
        near = self._catalog.records(self._corpus.similar_to(record.chunk, self._policy.similar))
        neighbours = self._neighbours(record, list(near.values()))
        if not neighbours:
            return
        fusing = _Fusing(record, tuple(neighbours))
        kvs = [self._store.get(r.isolated_key).dense() for r in (record, *neighbours)]
        fusion = Fusion(fusing.key, kvs[0], tuple(kvs[1:]))
        ((fused, trace),) = fuse_chunks(self._model, self._prefix, [fusion], self._separator)
        if self._store.capture(fused):
            ids = [neighbour.chunk.id for neighbour in neighbours]
            self._catalog.set_fused(record.chunk.id, fused.key, ids, trace)

    def _load_isolated(self, chunk_id: str) -> ChunkKV:
        record = self._catalog.records([chunk_id])[chunk_id]
        try:
            return self._store.get(record.isolated_key).dense()
        except KVRecordError:  # damaged since it was written: make it anew
            return self._prefill_isolated([record])[0]


def delete_documents(
    corpus: Corpus, store: Records, document_ids: Iterable[str], scope: str = ""
) -> int:
    """Delete documents of a scope with all KV made from or with them; returns how many there were.

    Raises `InvalidInputError` for ids that aren't strings, and for a single string, whose letters
    would pass for ids.
    """
    ids = list(checked_value("document_ids", document_ids, Iterable[str]))
    with corpus.writing():
        catalog = corpus.catalog
        documents = [DocumentKey(document_id, scope) for document_id in ids]
        keys = catalog.keys_of(documents)
        corrections = Corrections(corpus.path, catalog)

        def collect() -> None:
            corrections.remove_stale()
            collect_garbage(corpus, store)

        def free() -> None:
            corrections.remove_stale([scope])
            for key in catalog.dead_keys(keys):
                store.delete(key)
            catalog.forget_traces(keys)

        with corpus.change(collect):
            return corpus.delete(documents, free)


def _batches(
    items: Iterable[Item], record_of: Callable[[Item], ChunkRecord]
) -> Iterator[list[Item]]:
    """The items in lists whose chunks have about `PASS_TOKENS` tokens together."""
    batch: list[Item] = []
    tokens = 0
    for item in items:
        batch.append(item)
        tokens += len(record_of(item).encoded.token_ids)
        if tokens >= PASS_TOKENS:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch


class Records(Protocol):
    """What deleting asks of a store of records."""

    def keys(self) -> Iterator[str]: ...

    def delete(self, key: str) -> None: ...


def collect_garbage(corpus: Corpus, store: Records) -> int:
    """Delete the records, and traces, that no chunk uses; returns how many records."""
    live = corpus.live_keys()
    dead = sorted(set(store.keys()) - live)
    for key in dead:
        store.delete(key)
    corpus.catalog.forget_traces()
    return len(dead)


def _content_hash(document: Document) -> str:
    content = [document.text, document.title, document.scope]
    content.append(metadata_json(document.id, document.metadata))
    for passage in document.passages:
        content += [passage.text, metadata_json(document.id, passage.metadata)]
    return sha256(json.dumps(content).encode()).hexdigest()
