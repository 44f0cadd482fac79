"""The command that puts a model and its store under load: bench throughput."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fusionrag_integrations.cli.console import (
    FilePath,
    bars,
    embedding_option,
    existing,
    json_option,
    model_for,
    out,
    print_json,
    salt_option,
)
from fusionrag_integrations.cli.models import MODEL_HELP
from fusionrag_integrations.cli.numbers import SEED, Number, count, counts, ratios_option, shares
from fusionrag_integrations.cli.shapes import device_option, dtype_option, load_model, shape_option
from fusionrag_integrations.cli.suites import directory
from fusionrag_integrations.demo import CORPUS_PATH, MODEL_DIR, smollm2
from fusionrag_integrations.documents.named import imported
from fusionrag_integrations.errors import InvalidInputError

CHUNK_TOKENS = 1000  # each of the texts below is one chunk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusionrag_integrations.documents.types import Document
    from fusionrag_integrations.engine import FusionEngine


@click.command()
@shape_option
@click.option(
    "--model",
    help=f"In the place of --config. {MODEL_HELP}  [default: the store's own; without a store "
    "smollm2 where it is installed, else demo]",
)
@click.option(
    "--store",
    type=FilePath(file_okay=False),
    help="A store whose chunks are asked about.  [default: one of texts of the demo, for a while]",
)
@embedding_option
@salt_option
@click.option(
    "--chunks", type=count(), default=200, show_default=True, help="Of which prompts are made."
)
@click.option(
    "--prompt-tokens",
    type=count(),
    default=2000,
    show_default=True,
    help="Of a prompt, or less than a chunk fewer.",
)
@click.option(
    "--output-tokens", type=count(), default=32, show_default=True, help="Of every answer."
)
@click.option(
    "--requests",
    type=count(),
    default=48,
    show_default=True,
    help="Of each system under each load, but at least two for each client.",
)
@click.option(
    "--clients",
    type=counts,
    default="1,2,4,8,16,32",
    show_default=True,
    help="Who send their next request when they have an answer.",
)
@click.option(
    "--arrivals",
    type=shares,
    default="0.25,0.5,0.75,0.9",
    show_default=True,
    help="Shares of a system's peak at which requests arrive, at random times.",
)
@ratios_option("0,0.05,0.15")
@click.option(
    "--zipf",
    type=Number(0.0, 10.0),
    default=0.8,
    show_default=True,
    help="How much more often popular chunks are drawn: the exponent of Zipf's law.",
)
@click.option(
    "--rounds",
    type=count(),
    default=1,
    show_default=True,
    help="In which it is repeated; slower ways to full attention are asked in the first alone.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of prompts and arrivals.")
@click.option(
    "--out",
    "kept",
    type=FilePath(file_okay=False),
    help="Keep what is measured here, and a store that is made; what is there already isn't "
    "measured again.",
)
@device_option
@dtype_option
@json_option
def throughput(
    shape: str | None,
    model: str | None,
    store: Path | None,
    embedding: str | None,
    salt: str,
    chunks: int,
    prompt_tokens: int,
    output_tokens: int,
    requests: int,
    clients: list[int],
    arrivals: list[float],
    ratios: list[float],
    zipf: float,
    rounds: int,
    seed: int,
    kept: Path | None,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Requests a second beside full attention's, and how long they wait for their tokens.

    Full attention is computed in every way that transformers has for many requests; the fastest one
    is put under every load.

    \b
    fusionrag bench throughput --clients 1,8 --requests 16      a first look
    fusionrag bench throughput --store my-store --rounds 3      your model, and your chunks
    fusionrag bench throughput --out runs/load                  all of it; goes on when interrupted
    """
    from fusionrag_integrations.bench.files import write_run
    from fusionrag_integrations.bench.throughput.measure import measure_throughput
    from fusionrag_integrations.bench.throughput.plan import Plan
    from fusionrag_integrations.bench.throughput.table import throughput_report

    plan = Plan(
        ratios=tuple(ratios),
        clients=tuple(clients),
        shares=tuple(arrivals),
        requests=requests,
        chunks=chunks,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        exponent=zipf,
        rounds=rounds,
        seed=seed,
    )
    with directory(kept) as path, bars() as progress:
        made = path / "store"
        with _engine(shape, model, device, dtype, store, made, embedding, salt) as engine:
            if store is None:
                texts = _documents(shape, engine.model.directory, chunks)
                engine.ingest(islice(texts, chunks), progress=progress)
            log = None if kept is None else path / "log.jsonl"
            result = measure_throughput(engine, plan, progress, log)
    report = throughput_report(result)
    if kept is not None:
        write_run(kept, result, report)
    if as_json:
        print_json(result)
    else:
        out.print(report, markup=False)


def _engine(
    shape: str | None,
    model: str | None,
    device: str,
    dtype: str,
    store: Path | None,
    made: Path,
    embedding: str | None,
    salt: str,
) -> FusionEngine:
    """Over the store; where none is given, over one at `made`."""
    from fusionrag_integrations.engine import FusionEngine

    if store is not None and shape is not None:
        raise InvalidInputError("Give --config or --store, not both.")
    found = model
    if store is not None:
        found = str(model_for(model, existing(store)))
    elif shape is None and model is None:
        found = _installed()
    return FusionEngine.open(
        load_model(shape, found, device, dtype),
        made if store is None else store,
        embedding=None if embedding is None else imported(embedding),
        chunk_tokens=CHUNK_TOKENS if store is None else None,
        salt=salt,
    )


def _installed() -> str:
    """The name of the pretrained model where it is installed, else the bundled one's."""
    from fusionrag_integrations.execution.hf.gguf import require_gguf_extra

    try:
        smollm2()
        require_gguf_extra()
    except InvalidInputError:
        return "demo"
    return "smollm2"


def _documents(shape: str | None, model: Path, count: int) -> Iterable[Document]:
    """Texts of about a chunk: invented words for random weights, the demo's world for its model,
    and else paragraphs of Wikipedia, behind which the demo's world stands in for more of them.
    """
    from fusionrag_integrations.bench.invented import texts
    from fusionrag_integrations.demo.real_text import PARAGRAPHS_PATH
    from fusionrag_integrations.documents.readers import read_documents
    from fusionrag_integrations.documents.types import Document

    if shape not in (None, "demo"):
        return (Document(f"invented-{i}", text) for i, text in enumerate(texts(count)))
    return read_documents([CORPUS_PATH] if model == MODEL_DIR else [PARAGRAPHS_PATH, CORPUS_PATH])
