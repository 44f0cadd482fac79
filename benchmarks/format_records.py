"""The records of the same chunks in several formats: their bytes, time to load, and how far off.

Files were read before, so what is timed is without the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from time import perf_counter
from typing import Literal

from fusionrag_integrations.bench.shapes import SHAPES
from fusionrag_integrations.execution.buffer import KVBuffer
from fusionrag_integrations.execution.chunk_kv import deviation, place_at
from fusionrag_integrations.execution.devices import settle
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.ingest.neighbours import Neighbours
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_format import RecordHeader
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.kv.types import KVFormat
from fusionrag_integrations.store.layout import KV_DIRECTORY
from fusionrag_integrations.store.store import Store as Store
from fusionrag_integrations.support.progress import Progress

REFERENCE: KVFormat = "float32"
SHAPE = "qwen2.5-7b"
SHAPE_CHUNK = 256  # tokens

Kind = Literal["isolated", "served"]


@dataclass(frozen=True, slots=True)
class FormatRow:
    """What the records of a format are like, over all chunks.

    bytes_a_token: of whole files; of_16_bits: over what they would take in 16 bits; in_shape: the
    same in the shape of `SHAPE`, in chunks of `SHAPE_CHUNK` tokens. Medians, milliseconds:
    load_ms, from a file to memory; place_ms, from a file to a prompt's buffer, turned back to
    plain numbers and rotated. Means, squared and relative to float32's mean square: error of
    isolated KV, which is the format's own; fused_error of what requests are served, to which
    neighbours in that format add.
    """

    kv_format: KVFormat
    bytes_a_token: float
    of_16_bits: float
    in_shape: float
    load_ms: float
    place_ms: float
    error: float
    fused_error: float


class Records:
    """One store's records. isolated, served: the keys of each chunk's, by its id."""

    def __init__(self, corpus: Store) -> None:
        info = corpus.catalog.info
        self.files = RecordStore(
            LocalKVFiles(corpus.path / KV_DIRECTORY), info.record_signature, info.kv_format
        )
        keys = corpus.catalog.kv.keys_by_chunk()
        self.isolated = {chunk: isolated for chunk, isolated, _ in keys}
        self.served = {chunk: fused or isolated for chunk, isolated, fused in keys}

    def headers(self) -> list[RecordHeader]:
        """Of what requests are served."""
        found = []
        for key in self.served.values():
            with self.files.files.open(key) as record:
                found.append(record.header)
        return found

    def error(self, reference: Records, kind: Kind) -> float:
        """The mean over chunks of how far KV is from another store's."""
        own = self.isolated if kind == "isolated" else self.served
        theirs = reference.isolated if kind == "isolated" else reference.served
        return mean(
            float(deviation((kv.keys, kv.values), (true.keys, true.values)).mean())
            for chunk, key in theirs.items()
            for kv, true in [(self.files.get(own[chunk]).dense(), reference.files.get(key).dense())]
        )


def measure_records(
    model: CausalModel, stores: Mapping[KVFormat, Records], progress: Progress
) -> list[FormatRow]:
    """A row for each store, `REFERENCE` among them; all have the same chunks."""
    errors = {
        kv_format: [records.error(stores[REFERENCE], kind) for kind in ("isolated", "served")]
        for kv_format, records in stores.items()
    }
    times = _times(model, stores, progress)
    return [
        _row(kv_format, records.headers(), times[kv_format], errors[kv_format])
        for kv_format, records in stores.items()
    ]


def share_in_shape(kv_format: KVFormat) -> float:
    """A record's bytes over those in 16 bits, in the shape of `SHAPE`."""
    config = SHAPES[SHAPE]()
    size = config.hidden_size // config.num_attention_heads
    key = "0" * 64
    header = RecordHeader(
        key=key,
        kind="fused",
        neighbours=(key,) * Neighbours().count,
        signature=key,
        kv_format=kv_format,
        shape=(config.num_hidden_layers, config.num_key_value_heads, SHAPE_CHUNK, size),
        half="BF16",
    )
    return header.file_bytes / _in_16_bits(header)


def _in_16_bits(header: RecordHeader) -> int:
    return replace(header, kv_format="bfloat16").file_bytes


def _row(
    kv_format: KVFormat,
    headers: Sequence[RecordHeader],
    times: Sequence[tuple[float, float]],
    errors: Sequence[float],
) -> FormatRow:
    nbytes = sum(header.file_bytes for header in headers)
    return FormatRow(
        kv_format=kv_format,
        bytes_a_token=nbytes / sum(header.shape[2] for header in headers),
        of_16_bits=nbytes / sum(map(_in_16_bits, headers)),
        in_shape=share_in_shape(kv_format),
        load_ms=median(load for load, _ in times),
        place_ms=median(place for _, place in times),
        error=errors[0],
        fused_error=errors[1],
    )


def _times(
    model: CausalModel, stores: Mapping[KVFormat, Records], progress: Progress
) -> dict[KVFormat, list[tuple[float, float]]]:
    """Milliseconds to load each chunk, and to load and place it. Formats take turns."""
    found: dict[KVFormat, list[tuple[float, float]]] = {name: [] for name in stores}
    chunks = list(stores[REFERENCE].served)
    longest = max(header.shape[2] for header in stores[REFERENCE].headers())
    buffer = Executor(model).new_buffer(longest)
    for number, chunk in enumerate(chunks):
        progress("load", number, len(chunks))
        turn = number % len(stores)
        for name in [*stores][turn:] + [*stores][:turn]:
            found[name].append(_load(model, stores[name], chunk, buffer))
    progress("load", len(chunks), len(chunks))
    return found


def _load(
    model: CausalModel, records: Records, chunk: str, buffer: KVBuffer
) -> tuple[float, float]:
    started = perf_counter()
    stored = records.files.get(records.served[chunk])
    loaded = perf_counter()
    place_at(model, buffer, stored.dense(), 0)
    settle(model.device)
    return 1e3 * (loaded - started), 1e3 * (perf_counter() - started)
