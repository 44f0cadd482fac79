"""Ad-hoc chunks: those that come with a question and were never ingested.

The paper's alternative path (arXiv 2601.12904): such a chunk's KV is stored under its content key,
whatever came before it in the prompt, so that later requests reuse it. It is computed as at ingest,
behind the ingest prefix alone, so it contains nothing of the request.

registered --found in a prompt--> sighted --admitted--> stored --used often--> fused
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import Generic, TypeVar

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.keys import chunk_id
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import FusionRAGError
from fusionrag_integrations.prompt.assembled import TextMatch
from fusionrag_integrations.serving.loading import LoadedPrompt
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.kv.types import ChunkKV
from fusionrag_integrations.support.forks import Forkable
from fusionrag_integrations.support.threads import Closable, Threads

MIN_CHARACTERS = 64  # of a text that is registered
REGISTERED = 256  # texts that are searched for in prompts
SIGHTINGS = 1 << 16  # that are remembered
HOT = 3  # uses after which an ad-hoc chunk is fused

logger = logging.getLogger(__name__)

Key = TypeVar("Key")


class Recent(Generic[Key]):
    """The keys that were added last, up to a number of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: OrderedDict[Key, None] = OrderedDict()

    def __iter__(self) -> Iterator[Key]:
        return iter(tuple(self._keys))

    def add(self, key: Key) -> bool:
        """Add a key; returns whether it was among them already."""
        known = key in self._keys
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._limit:
            self._keys.popitem(last=False)
        return known


class Admission:
    """Which new chunks are stored: those seen before, and any while there is room to spare.

    A chunk that comes only once must neither evict others nor fill a disk.
    """

    def __init__(self, roomy: Callable[[], bool], remembered: int = SIGHTINGS) -> None:
        """roomy: returns whether there is room to spare. remembered: how many sightings."""
        self._roomy = roomy
        self._sighted: Recent[str] = Recent(remembered)

    def admits(self, key: str) -> bool:
        """Count a sighting; returns whether the chunk is to be stored."""
        return self._sighted.add(key) or self._roomy()


class AdHocChunks(Forkable, Closable):
    """The ad-hoc chunks of one store's requests, from several threads at once."""

    def __init__(
        self,
        catalog: Catalog,
        kv: TieredKV,
        new_record: Callable[[Chunk], ChunkRecord],
        on_hot: Callable[[ChunkRecord], None],
    ) -> None:
        """new_record: encodes a chunk. on_hot: called, in the background, with frequent chunks."""
        self._catalog = catalog
        self._kv = kv
        self._new_record = new_record
        self._on_hot = on_hot
        self._registered: Recent[tuple[str, str]] = Recent(REGISTERED)
        self._admission = Admission(kv.disk.has_room_to_spare)
        self._uses: Counter[str] = Counter()
        self._background = Threads("fusionrag-keep", catalog.store, 1)
        kv.disk.mark_adhoc(catalog.adhoc.kv_keys())
        self.in_child()
        super().__init__()

    def in_child(self) -> None:
        """In a forked child no thread is left that could release the lock."""
        self._lock = Lock()

    def close(self) -> None:
        """Wait until everything is stored, and store nothing more."""
        self._background.close()

    def wait(self) -> None:
        """Wait until the KV of earlier requests is stored."""
        self._background.submit(lambda: None).result()

    def register(self, texts: Iterable[str], scope: str) -> None:
        """Find these texts in prompts from now on. White space around them doesn't matter."""
        with self._lock:
            for text in map(str.strip, texts):
                if len(text) >= MIN_CHARACTERS:
                    self._registered.add((scope, text))

    def find(
        self, prompt: str, known: Sequence[TextMatch], scopes: Sequence[str] | None
    ) -> list[TextMatch]:
        """Registered texts that a prompt contains and that are admitted, in order.

        known: the known chunks in the prompt. scopes: those of the request; None for all.
        """
        found: list[TextMatch] = []
        for scope, place in self._registered_in(prompt, known, scopes):
            text = prompt[place.start : place.stop]
            identity = chunk_id("", text, 0, scope=scope, title="", metadata="{}")
            with self._lock:
                admitted = self._admission.admits(identity)
            if admitted:
                record = self._new_record(Chunk(identity, identity, 0, text, scope=scope))
                record = replace(record, captured=True)
                found.append(TextMatch(record, place.start, place.stop, "isolated"))
        return sorted(found, key=lambda match: match.start)

    def places(
        self, prompt: str, known: Sequence[TextMatch], scopes: Sequence[str] | None
    ) -> list[range]:
        """The characters of all registered texts in a prompt, admitted or not; see `find`."""
        return [place for _, place in self._registered_in(prompt, known, scopes)]

    def _registered_in(
        self, prompt: str, known: Sequence[TextMatch], scopes: Sequence[str] | None
    ) -> list[tuple[str, range]]:
        """Registered texts' scopes and places, without overlap; the longest first."""
        taken = [range(match.start, match.stop) for match in known]
        found: list[tuple[str, range]] = []
        with self._lock:
            registered = sorted(self._registered, key=lambda entry: -len(entry[1]))
        for scope, text in registered:
            start = prompt.find(text) if scopes is None or scope in scopes else -1
            place = range(start, start + len(text))
            if start < 0 or any(p.start < place.stop and place.start < p.stop for p in taken):
                continue
            taken.append(place)
            found.append((scope, place))
        return found

    def keep(self, loaded: LoadedPrompt) -> None:
        """In the background, store the KV computed for a request, and fuse chunks in heavy use."""
        records = {span.record.chunk.id: span.record for span in loaded.prompt.spans}
        for name, kv in loaded.adhoc.items():
            self._background.submit(self._store, records.pop(name), kv)
        for record in self._hot(records.values()):
            self._background.submit(self._on_hot, record)

    def _store(self, record: ChunkRecord, kv: ChunkKV) -> None:
        """Failures are logged, since no caller waits for this."""
        try:
            # The catalog first: KV that it doesn't know may be collected as garbage.
            self._catalog.adhoc.add(record)
            self._kv.disk.put_adhoc(kv)
            self._forget_evicted()
        except FusionRAGError as error:
            logger.warning("A new chunk's KV was not kept: %s", error)

    def _hot(self, records: Iterable[ChunkRecord]) -> list[ChunkRecord]:
        """Count uses; returns the ad-hoc chunks that should be fused now."""
        unfused = [record for record in records if record.captured and not record.fused_key]
        with self._lock:
            self._uses.update(record.chunk.id for record in unfused)
            return [r for r in unfused if self._uses[r.chunk.id] % HOT == 0]

    def _forget_evicted(self) -> None:
        """Forget chunks whose KV was evicted, once they outnumber the others."""
        known, stored = set(self._catalog.adhoc.kv_keys()), self._kv.disk.adhoc_keys()
        if len(known) > 2 * len(stored) + REGISTERED:
            self._catalog.adhoc.delete_keys(known - stored)
            with self._lock:
                self._uses.clear()
