"""What a document shows of times and formats, as Markdown; see `report.py`."""

from __future__ import annotations

from benchmarks.results.marks import Mark, Result
from benchmarks.results.tables import (
    format_scores_markdown,
    formats_markdown,
    kernel_markdown,
    ray_ingest_markdown,
    routers_markdown,
    shared_markdown,
    store_markdown,
)
from fusionrag_integrations.bench.tables import ttft_markdown
from fusionrag_integrations.bench.throughput.table import limits_lines, throughput_markdown


def ttft(mark: Mark) -> str:
    fit, shown = mark.only["fit"], ""
    if fit is not None:
        shown = (
            f"; fit: {fit['fixed_ms']:.1f} ms, {fit['ms_a_row']:.3f} ms a computed row and "
            f"{fit['ms_a_million_keys']:.3f} ms a million attended keys, R² {fit['r_squared']:.3f}"
        )
    return f"{ttft_markdown(mark.only['rows'])}\n\n({_measured(mark.only)}{shown}.)"


def throughput(mark: Mark) -> str:
    result = mark.only
    asked = result["settings"]
    setting = (
        f"{result['model']}; {asked['chunks']} chunks, prompts of {asked['shortest_prompt']} to "
        f"{asked['longest_prompt']} tokens, answers of {asked['output_tokens']}, "
        f"{asked['requests']} requests a load or two a client, rounds: {asked['rounds']}"
    )
    table = throughput_markdown(result["rows"])
    return "\n\n".join([table, *limits_lines(result), f"({setting}; {_measured(result)}.)"])


def kernel(mark: Mark) -> str:
    return f"{kernel_markdown(mark.only['rows'])}\n\n({_measured(mark.only)}.)"


def store(mark: Mark) -> str:
    result = mark.only
    setting = f"{result['model']}, {result['context']:,} tokens, KV in {result['format']}"
    if "rows" in result:
        setting += f"; {result['ratio']:.0%} recomputed, a gap of {result['gap_ms']:.0f} ms"
    return f"{store_markdown(result)}\n\n({setting}; on {result['device']}; {_measured(result)}.)"


def formats(mark: Mark) -> str:
    return f"{formats_markdown(mark.only['formats'])}\n\n({_measured(mark.only)}.)"


def format_scores(mark: Mark) -> str:
    return format_scores_markdown(mark.only["rows"])


def routers(mark: Mark) -> str:
    result, asked = mark.only, mark.only["workload"]
    setting = (
        f"{result['model']}, {asked['topics']} topics of {asked['chunks']} chunks, "
        f"{asked['asked']} in a request; {result['kv_bytes'] / 1e6:.0f} MB of KV; "
        f"{asked['requests']:,} requests after {asked['warm_up']:,}, {asked['clients']} at a "
        f"time; Ray {result['ray']}"
    )
    return f"{routers_markdown(result['rows'])}\n\n({setting}; {_measured(result)}.)"


def ray_ingest(mark: Mark) -> str:
    result = mark.only
    setting = (
        f"{result['model']}, {result['chunks']} chunks of {result['words_a_chunk']} words, "
        "a thread each"
    )
    return f"{ray_ingest_markdown(result)}\n\n({setting}; {_measured(result)}.)"


def shared(mark: Mark) -> str:
    result = mark.only
    middle, low, high = result["later"]
    said = (
        f"{result['model']}, KV in {result['kv_format']}, {result['questions']} questions, "
        f"{result['ratio']:.0%} recomputed, {result['read_bytes'] / 1e6:.0f} MB of KV a question. "
        f"Copied against a directory, question by question: {middle:.2f} ({low:.2f} to {high:.2f})"
    )
    return f"{shared_markdown(result)}\n\n({said}; {_measured(result)}.)"


def _measured(result: Result) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    dtype = f"{result['dtype']}; " if "dtype" in result else ""
    return f"{result['date']}; {result['hardware']}; {dtype}{versions}"
