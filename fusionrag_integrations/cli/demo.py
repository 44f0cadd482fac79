"""The command that shows the package at work: demo."""

from __future__ import annotations

from dataclasses import asdict

import click

from fusionrag_integrations.cli.console import bars, json_option, out, print_json
from fusionrag_integrations.cli.models import MODEL_HELP, find_model


@click.command()
@click.option("--model", default="smollm2", show_default=True, help=MODEL_HELP)
@json_option
def demo(model: str, as_json: bool) -> None:
    """See it work: a pretrained model over real text, three ways to answer, side by side.

    \b
    full_attention       the model reads the whole prompt: the reference
    full_reuse           stored KV of each chunk alone, nothing recomputed
    fusionrag            KV fused with neighbouring chunks, 15% of the tokens recomputed

    Each question is asked over the six paragraphs of Wikipedia that are found for it. They were
    chosen for SmolLM2: it answers them under full attention.

    With `--model demo`, the bundled model is asked 300 questions over invented documents:
    single_hop asks for a fact that stands in one chunk, back_reference for one whose sentence
    refers back to the chunk before, bridge joins two documents. A fourth way is fusionrag_isolated:
    as fusionrag, but with the neighbours off.
    """
    from fusionrag_integrations.bench.machine import where_and_when
    from fusionrag_integrations.bench.tables import answers_table, rows_table
    from fusionrag_integrations.demo import MODEL_DIR
    from fusionrag_integrations.demo.run import invented_demo, real_text_demo, run_demo

    found = find_model(model)
    shown = invented_demo() if found == MODEL_DIR else real_text_demo()
    with bars() as progress:
        result = run_demo(found, shown, progress)
    if as_json:
        rows = [asdict(row) for row in result.rows]
        print_json(where_and_when() | {"model": result.model, "note": shown.note, "rows": rows})
        return
    out.print(answers_table(result.outcomes, shown.examples))
    out.print(rows_table(result.rows))
    out.print(
        f"{result.ingest.chunks} chunks indexed in {result.ingest.seconds:.0f} s. {shown.note}\n"
        "Right: an accepted answer stands in the text. Kept: of the questions that full attention "
        "answers rightly. Redone: share of the chunks' tokens that is recomputed, median. TTFT: "
        "time to first token, median; speed-up: full attention's TTFT over it, median."
    )
