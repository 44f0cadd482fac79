"""Commands about what a store was and becomes: reindex, collect."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click

from fusionrag_integrations.cli.console import (
    bars,
    embedding_option,
    json_option,
    out,
    print_json,
    salt_option,
    store_option,
)
from fusionrag_integrations.cli.models import MODEL_HELP, find_model
from fusionrag_integrations.cli.numbers import MOST, Number
from fusionrag_integrations.documents.named import imported
from fusionrag_integrations.store.kv.types import KVFormat
from fusionrag_integrations.store.objects.opening import is_url

DAY = 24.0  # hours


@click.command()
@store_option
@click.option("--model", required=True, help=f"The model to make it for. {MODEL_HELP}")
@click.option(
    "--dtype",
    type=click.Choice(("auto", "float32", "bfloat16", "float16")),
    default="auto",
    show_default=True,
    help="Of the model.",
)
@click.option(
    "--kv-format",
    type=click.Choice(get_args(KVFormat)),
    help="How KV is kept.  [default: the model's dtype]",
)
@embedding_option
@salt_option
@json_option
def reindex(
    store: Path | str,
    model: str,
    dtype: str,
    kv_format: Any,
    embedding: str | None,
    salt: str,
    as_json: bool,
) -> None:
    """Make a store anew for another model, dtype or format, from its own texts.

    Chunks and vectors stay; tokens and KV are computed. Meanwhile, and afterwards until they open
    it anew, servers answer from the store as it was. May be interrupted and run again: no KV is
    computed twice. `collect` deletes what the old one had.

    \b
    fusionrag reindex --store my-store --model my-other-model
    fusionrag reindex --store s3://bucket/manuals --model my-model --kv-format int8
    """
    from fusionrag_integrations.engine.reindex import reindex as make_anew

    with bars() as progress:
        report = make_anew(
            find_model(model),
            store=store,
            dtype=dtype,
            embedding=None if embedding is None else imported(embedding),
            kv_format=kv_format,
            salt=salt,
            progress=progress,
        )
    if as_json:
        print_json(asdict(report))
        return
    out.print(
        f"{store} is for {model} now: {report.chunks} chunks; computed isolated KV of "
        f"{report.isolated_computed} and fused KV of {report.fused_computed} in "
        f"{report.seconds:.1f} s.",
        markup=False,
    )


@click.command()
@store_option
@click.option(
    "--grace",
    type=Number(0.0, float(MOST)),
    default=DAY,
    show_default=True,
    help="Hours for which a version stays after a newer one was published.",
)
@json_option
def collect(store: Path | str, grace: float, as_json: bool) -> None:
    """Delete what is left of a store's earlier versions.

    At a URL: versions that were superseded before the grace and have no reader, with the KV that
    only they use. In a directory: what it held before `reindex`.
    """
    from fusionrag_integrations.store.generations import collect_generations
    from fusionrag_integrations.store.published.collecting import collect as collect_versions

    seconds = grace * 3600
    if is_url(store):
        found = collect_versions(store, seconds)
        if as_json:
            print_json(asdict(found))
            return
        kept = ", ".join(map(str, found.kept_versions))
        out.print(
            f"Deleted {found.versions} versions and {found.kv_records} KV records, "
            f"{found.nbytes:,} bytes. Versions that are left: {kept}."
        )
        return
    deleted = collect_generations(Path(store), seconds)
    if as_json:
        print_json({"deleted": [str(path) for path in deleted]})
    else:
        out.print(f"Deleted {len(deleted)} files and directories of earlier models.")
