"""Chunks that come with a question and were never ingested: which of them are worth keeping.

The paper's alternative path (arXiv 2601.12904): such a chunk's KV is kept under its content key,
whatever stood before it, so that later requests reuse it. Here it is computed as ingest does,
behind the ingest prefix alone: it holds nothing of the request that it came with.

offered --found in a prompt--> sighted --admitted--> captured --used often--> fused
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from typing import Generic, TypeVar

from fusionrag_integrations.catalog import Catalog
from fusionrag_integrations.errors import FusionRAGError
from fusionrag_integrations.keys import chunk_id, isolated_key
from fusionrag_integrations.store import TieredKV
from fusionrag_integrations.types import Chunk, ChunkKV, ChunkRecord, EncodedChunk, TextMatch

MIN_CHARACTERS = 64  # of a text that is kept; a shorter one is found by a handle at most
OFFERED = 256  # texts that are looked for in prompts
SIGHTINGS = 1 << 16  # that are remembered
HOT = 3  # uses after which a captured chunk is fused

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
        """Add a key; returns whether it was there."""
        known = key in self._keys
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._limit:
            self._keys.popitem(last=False)
        return known


class Admission:
    """Which new chunks are kept: those seen before, and any while there is room to spare.

    A chunk that comes once must neither push out others nor fill a disk.
    """

    def __init__(self, roomy: Callable[[], bool], remembered: int = SIGHTINGS) -> None:
        """roomy: whether there is room to spare. remembered: how many sightings."""
        self._roomy = roomy
        self._sighted: Recent[str] = Recent(remembered)

    def admits(self, key: str) -> bool:
        """Count a sighting; whether the chunk is to be kept."""
        return self._sighted.add(key) or self._roomy()


class Captures:
    """The new chunks of one store's requests, from several threads at once."""

    def __init__(
        self, catalog: Catalog, kv: TieredKV, encode: Callable[[Chunk], EncodedChunk]
    ) -> None:
        self._catalog = catalog
        self._kv = kv
        self._encode = encode
        self._offered: Recent[tuple[str, str]] = Recent(OFFERED)
        self._admission = Admission(kv.has_room_to_spare)
        self._uses: Counter[str] = Counter()
        self._lock = Lock()
        kv.adopt(catalog.captured_keys())

    def renew(self) -> None:
        """In a forked child, where nobody is left to unlock what was locked."""
        self._lock = Lock()

    def offer(self, texts: Iterable[str], scope: str) -> None:
        """Look for these texts in prompts to come. White space around them doesn't matter."""
        with self._lock:
            for text in map(str.strip, texts):
                if len(text) >= MIN_CHARACTERS:
                    self._offered.add((scope, text))

    def find(
        self, prompt: str, known: Sequence[TextMatch], scopes: Sequence[str] | None
    ) -> list[TextMatch]:
        """Offered texts that stand in a prompt and are worth keeping, in order.

        known: what stands there of known chunks. scopes: those of the request; None for all.
        """
        found: list[TextMatch] = []
        for scope, place in self._offered_in(prompt, known, scopes):
            text = prompt[place.start : place.stop]
            identity = chunk_id("", text, 0, scope=scope, title="", metadata="{}")
            with self._lock:
                admitted = self._admission.admits(identity)
            if admitted:
                record = self._record(identity, text, scope)
                found.append(TextMatch(record, place.start, place.stop, "isolated"))
        return sorted(found, key=lambda match: match.start)

    def places(
        self, prompt: str, known: Sequence[TextMatch], scopes: Sequence[str] | None
    ) -> list[range]:
        """The characters of all offered texts in a prompt, worth keeping or not; see `find`."""
        return [place for _, place in self._offered_in(prompt, known, scopes)]

    def _offered_in(
        self, prompt: str, known: Sequence[TextMatch], scopes: Sequence[str] | None
    ) -> list[tuple[str, range]]:
        """Offered texts' scopes and places, without overlap; the longest first."""
        taken = [range(match.start, match.stop) for match in known]
        found: list[tuple[str, range]] = []
        with self._lock:
            offered = sorted(self._offered, key=lambda entry: -len(entry[1]))
        for scope, text in offered:
            start = prompt.find(text) if scopes is None or scope in scopes else -1
            place = range(start, start + len(text))
            if start < 0 or any(p.start < place.stop and place.start < p.stop for p in taken):
                continue
            taken.append(place)
            found.append((scope, place))
        return found

    def keep(self, record: ChunkRecord, kv: ChunkKV) -> None:
        """Store what was computed of a new chunk. Where that fails, it is logged: nobody waits."""
        try:
            # In this order: KV that the catalog doesn't know may be collected as garbage.
            self._catalog.capture(record)
            self._kv.capture(kv)
            self._forget_evicted()
        except FusionRAGError as error:
            logger.warning("A new chunk's KV was not kept: %s", error)

    def hot(self, records: Iterable[ChunkRecord]) -> list[ChunkRecord]:
        """Count uses; the captured chunks among them that should be fused now."""
        captured = [record for record in records if record.captured and not record.fused_key]
        with self._lock:
            self._uses.update(record.chunk.id for record in captured)
            return [r for r in captured if self._uses[r.chunk.id] % HOT == 0]

    def _record(self, identity: str, text: str, scope: str) -> ChunkRecord:
        chunk = Chunk(identity, identity, 0, text, scope=scope)
        encoded = self._encode(chunk)
        signature = self._catalog.info.record_signature
        key = isolated_key(encoded.token_ids, signature, scope)
        return ChunkRecord(encoded, key, captured=True)

    def _forget_evicted(self) -> None:
        """Forget chunks whose KV is gone, once they are most of those that are known."""
        known, kept = set(self._catalog.captured_keys()), self._kv.captured()
        if len(known) > 2 * len(kept) + OFFERED:
            self._catalog.forget_captured(known - kept)
            with self._lock:
                self._uses.clear()
