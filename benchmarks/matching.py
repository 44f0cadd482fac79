"""How long it takes to find known chunks in a long prompt.

    python -m benchmarks.matching --chunks 100000 --tokens 27000

Finding texts, reading records from the catalog, deciding which chunk each text is, and laying
tokens over the prompt's. What comes between is shown beside it: encoding the prompt, as a whole
and without the tokens of the chunks that were found.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import click

from fusionrag_integrations.bench.invented import make_tokenizer, texts
from fusionrag_integrations.documents.chunk_record import ChunkRecord, EncodedChunk
from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.documents.keys import chunk_id
from fusionrag_integrations.documents.types import Chunk, DocumentKey
from fusionrag_integrations.errors import FusionRAGError
from fusionrag_integrations.prompt import assemble, encode_chunk, encode_rendered, render
from fusionrag_integrations.prompt.match import ChunkMatcher
from fusionrag_integrations.prompt.resolve import resolve
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.info import StoreInfo

CHUNKS_A_DOCUMENT = 100
REPEATS = 21


@dataclass(frozen=True, slots=True)
class MatchTime:
    """Milliseconds, by medians; low and high are the quartiles of `match_ms`."""

    known_chunks: int
    prompt_tokens: int
    chunks_in_prompt: int
    handles: bool
    tokens_found: int
    encode_ms: float
    encode_unknown_ms: float
    match_ms: float
    low_ms: float
    high_ms: float


def fill(catalog: Catalog, count: int, tokenizer: Any, chosen: set[int]) -> list[ChunkRecord]:
    """Put chunks into the catalog, and return the chosen ones; only those need their tokens."""
    kept: list[ChunkRecord] = []
    source = texts(count)
    for first in range(0, count, CHUNKS_A_DOCUMENT):
        name = f"document-{first}"
        records = []
        for number in range(first, min(first + CHUNKS_A_DOCUMENT, count)):
            text = next(source)
            identity = chunk_id(name, text, 0, scope="", title="", metadata="{}")
            chunk = Chunk(identity, name, number - first, text)
            wanted = number in chosen
            encoded = encode_chunk(tokenizer, chunk) if wanted else EncodedChunk(chunk, (), ())
            records.append(ChunkRecord(encoded, identity))
            kept += [records[-1]] if wanted else []
        catalog.documents.replace(DocumentKey(name), name, records)
    return kept


def measure(known: int, tokens: int) -> list[MatchTime]:
    """With and without handles, for a prompt of about so many tokens."""
    tokenizer = make_tokenizer()
    a_chunk = len(tokenizer(next(texts(1)), add_special_tokens=False).input_ids)
    chosen = set(random.Random(1).sample(range(known), min(known, tokens // a_chunk)))
    with TemporaryDirectory(prefix="fusionrag-matching-") as directory:
        info = StoreInfo(0, "-", "-", "-", 16, "float32")
        with Catalog.create(Path(directory) / "catalog.sqlite", info) as catalog:
            records = fill(catalog, known, tokenizer, chosen)
            matcher = ChunkMatcher(catalog.chunks.ids(), catalog.chunks.scoped_texts)
            prompt = "\n\n".join([*(r.chunk.text for r in records), "What does it say of that?"])
            rendered = render(tokenizer, prompt)
            encoded, encode_times = timed(lambda: encode_rendered(tokenizer, rendered))
            matches = resolve(matcher.find(prompt, catalog.chunks.records), ())
            again, unknown_times = timed(lambda: encode_rendered(tokenizer, rendered, matches))
            if again != encoded:
                raise FusionRAGError("Tokens of known chunks are others than the tokenizer's.")
            rows: list[MatchTime] = []
            for handles in ((), tuple(record.handle for record in records)):

                def match(handles: tuple[KVHandle, ...] = handles) -> Any:
                    found = matcher.find(encoded.text, catalog.chunks.records, handles)
                    return assemble(encoded, resolve(found, handles), handles)

                assembled, times = timed(match)
                low, _, high = quantiles(times, n=4)
                rows.append(
                    MatchTime(
                        known_chunks=known,
                        prompt_tokens=len(assembled),
                        chunks_in_prompt=len(records),
                        handles=bool(handles),
                        tokens_found=len(assembled.chunk_positions),
                        encode_ms=median(encode_times),
                        encode_unknown_ms=median(unknown_times),
                        match_ms=median(times),
                        low_ms=low,
                        high_ms=high,
                    )
                )
    return rows


def timed(work: Callable[[], Any]) -> tuple[Any, list[float]]:
    """The last result, and how long each call took in ms; the first one warms up."""
    work()
    times: list[float] = []
    for _ in range(REPEATS):
        started = perf_counter()
        result = work()
        times.append(1000 * (perf_counter() - started))
    return result, times


@click.command()
@click.option("--chunks", default=100_000, show_default=True, help="Known chunks.")
@click.option("--tokens", default=27_000, show_default=True, help="Tokens of the prompt.")
def main(chunks: int, tokens: int) -> None:
    """Time the matching of known chunks in a long prompt, with and without handles."""
    click.echo(json.dumps([asdict(row) for row in measure(chunks, tokens)], indent=2))


if __name__ == "__main__":
    main()
