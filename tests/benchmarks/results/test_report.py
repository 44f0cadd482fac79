"""Tables of a document, made from results."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results.report import draw_figures, fill
from fusionrag_integrations.bench.tables import TTFT_PARTS
from fusionrag_integrations.errors import InvalidInputError

ROOT = Path(__file__).parent.parent.parent.parent


def row(strategy: str, kv: str, ratio: float, f1: float, **more: Any) -> dict[str, Any]:
    base = {"kind": "bridge", "ci": [f1 - 0.1, f1 + 0.1]}
    base |= {"normalized_f1": None, "normalized_ci": None}
    base |= {"strategy": strategy, "kv": kv, "ratio": ratio, "f1": f1}
    return base | {"overlap_deviation": None} | more


def close(
    strategy: str, kv: str, ratio: float, kept: float | None, recovered: float | None
) -> dict[str, Any]:
    """A row with what is measured beside full attention."""
    figures = {"kept": kept, "equal": 0.5, "recovered": recovered, "agreement": 0.9, "kl": 0.1234}
    around = {f"{n}_ci": None if v is None else [v - 0.25, v] for n, v in figures.items()}
    return row(strategy, kv, ratio, 0.5) | figures | around | {"kept_of": 8}


def difference(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high}


def gap(values: Sequence[str | float]) -> dict[str, Any]:
    names = ("kind", "kv", "ratio", "other", "mean", "low", "high")
    return dict(zip(names, values, strict=True))


RUN = {
    "neighbours": "near",
    "rows": [
        row("full_attention", "none", 1.0, 0.9),
        row("full_reuse", "isolated", 0.0, 0.3),
        row("fusionrag", "fused", 0.0, 0.5),
        row(
            *("fusionrag", "fused", 0.15, 0.8),
            normalized_f1=0.8333,
            normalized_ci=[0.7, 0.9],
            overlap_deviation=0.5,
            overlap_attention=0.25,
        ),
    ],
    "leads": [
        gap(values)
        for values in (
            ("bridge", "fused", 0.15, "epic", 0.2, 0.1, 0.3),
            ("bridge", "fused", 0.15, "random", 0.01, -0.1, 0.1),
        )
    ],
}
CLOSE = {
    "neighbours": "similar:10",
    "rows": [
        close("full_attention", "none", 1.0, 1.0, 1.0),
        close("full_reuse", "isolated", 0.0, None, 0.0),
        close("epic", "isolated", 0.15, 0.75, 0.5),
        close("fusionrag", "fused", 0.05, 0.75, 0.625),
        close("fusionrag", "fused", 0.15, 0.875, None),
    ],
    "leads": [
        gap(("bridge", "fused", 0.15, "epic", 0.2, 0.1, 0.3))
        | {"recovered": difference(0.25, -0.125, 0.5)},
        gap(("bridge", "fused", 0.15, "random", 0.2, 0.1, 0.3)) | {"recovered": None},
    ],
    "leads_published": [
        {
            **{"kind": "bridge", "kv": kv, "ratio": ratio, "other": other},
            **{"recovered": difference(0.25, 0.125, 0.5), "kept": kept},
        }
        for other, kv, ratio, kept in (
            ("epic", "isolated", 0.15, difference(0.0, -0.125, 0.125)),
            ("fusionrag_paper", "fused_as_stored", 0.15, None),
            ("epic", "isolated", 0.3, None),
        )
    ],
}
OWN = {  # questions of a file of JSON lines
    part: [row | {"kind": "jsonl"} for row in rows]
    for part, rows in CLOSE.items()
    if part != "neighbours"
} | {"neighbours": "default"}
COST = {
    "rows": [
        {"strategy": "epic", "ratio": 0.0, "work": 0.03},
        {"strategy": "epic", "ratio": 0.15, "work": 0.18},
    ]
}


MEASURED = {
    "date": "2026-01-02",
    "hardware": "a card",
    "dtype": "bfloat16",
    "versions": {"torch": "2.11", "python": "3.12"},
}
TTFT = MEASURED | {
    "fit": {"fixed_ms": 1.0, "ms_a_row": 0.5, "ms_a_million_keys": 2.0, "r_squared": 0.99},
    "rows": [
        {
            **{"strategy": "fusionrag", "ratio": 0.15, "context": 4000, "kv": "host"},
            **{"ttft_ms": 20.0, "spread_ms": [19.0, 22.0], "from_text_ms": 30.0, "speedup": 5.0},
            **{"limit_ms": 16.0, "breakdown": dict.fromkeys(TTFT_PARTS, 2.5)},
        }
    ],
}
THROUGHPUT = MEASURED | {
    "model": "a model",
    "settings": {
        **{"chunks": 200, "shortest_prompt": 1800, "longest_prompt": 2000, "output_tokens": 32},
        **{"requests": 48, "rounds": 3},
    },
    "bounds": [
        {
            **{"ratio": 0.15, "clients": 8, "prefill_ms": 1400.0, "step_ms": 117.5},
            **{"requests_per_s": 0.5, "reached": 0.875},
        }
    ],
    "short_behind_long": {
        **{"ratio": 0.15, "short_tokens": 100, "long_tokens": 7900, "alone_ms": 300.0},
        **{"pass_ms": 2000.0, "behind_ms": [900.0, 1300.0], "of_limit": 0.5},
    },
    "rows": [
        {
            **{"system": "full_attention", "way": "batches", "ratio": None, "clients": None},
            **{"arrivals_per_s": 2.5, "share": 0.5, "requests_per_s": 2.4567, "errors": 1},
            **{"spread_requests_per_s": [2.25, 2.75], "tokens_per_s": 78.6, "tbt_p50_ms": 5.0},
            **{"tbt_p99_ms": None, "ttft_p50_ms": 1234.56, "ttft_p99_ms": 2000.0},
            **{"peak_bytes": 1_500_000_000, "peak_device_bytes": 20_000_000_000},
        }
    ],
}
KERNEL = MEASURED | {
    "rows": [
        {
            **{"keys": 4096, "ratio": 0.15, "rows": 614, "sparse_ms": 2.0},
            **{
                "in_place_ms": 2.5,
                "masked_ms": 5.0,
                "flex_ms": None,
                "dense_ms": 9.0,
                "error": 0.002,
            },
        }
    ]
}

FORMATS = MEASURED | {
    "formats": [
        {
            **{"kv_format": "int8", "bytes_a_token": 2100.4, "of_16_bits": 0.525},
            **{"in_shape": 0.52, "load_ms": 0.123, "place_ms": 1.5},
            **{"error": 1.5e-5, "fused_error": 0.0},
        }
    ],
    "rows": [
        {
            **{"kv_format": name, "kind": "bridge", "ratio": ratio, "n": 3, "em": 0.5, "f1": f1},
            **{"difference": f1 - 0.75, "ci": [-0.5, 0.25]},
        }
        for ratio in (0.15, 0.0)
        for name, f1 in (("float32", 0.75), ("int8", 0.625))
    ],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "speed.json").write_text(json.dumps(TTFT))
    (tmp_path / "no-fit.json").write_text(json.dumps(TTFT | {"fit": None, "rows": []}))
    (tmp_path / "load.json").write_text(json.dumps(THROUGHPUT))
    (tmp_path / "operator.json").write_text(json.dumps(KERNEL))
    (tmp_path / "bits.json").write_text(json.dumps(FORMATS))
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "speed.json").write_text(json.dumps(TTFT))
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "close.json").write_text(json.dumps(CLOSE))
    for name in ("own-few", "own-many"):
        (tmp_path / f"{name}.json").write_text(json.dumps(OWN))
    (tmp_path / "cost.json").write_text(json.dumps(COST))
    wrong = ("bridge", "fused", 0.15, "epic", -0.2, -0.3, -0.1)
    (tmp_path / "run-wrong.json").write_text(
        json.dumps({"neighbours": "wrong", "rows": [], "leads": [gap(wrong)]})
    )
    (tmp_path / "few").mkdir()
    for policy, f1 in (("default:0", 0.1), ("similar:2", 0.2), ("similar:10", 0.4)):
        rows = [row("fusionrag", "fused", 0.0, f1)]
        (tmp_path / "few" / f"{policy.replace(':', '-')}.json").write_text(
            json.dumps({"neighbours": policy, "rows": rows})
        )
    return tmp_path


def table(mark: str, results: Path) -> list[str]:
    text = fill(f"Before.\n<!-- result: {mark} -->\nold\n<!-- /result -->\nAfter.", results)
    before, *lines, after = [line for line in text.splitlines() if line]
    assert (before, after) == ("Before.", "After.")
    assert lines[0] == f"<!-- result: {mark} -->"
    assert lines[-1] == "<!-- /result -->"
    assert fill(text, results) == text
    return lines[1:-1]


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (
            "f1 run kind=bridge",
            [
                "| strategy | KV | 0% | 15% | 100% |",
                "| --- | --- | --- | --- | --- |",
                "| full_attention | none |  |  | 0.90 (0.80 to 1.00) |",
                "| full_reuse | isolated | 0.30 (0.20 to 0.40) |  |  |",
                "| fusionrag | fused | 0.50 (0.40 to 0.60) | 0.80 (0.70 to 0.90) |  |",
            ],
        ),
        (
            "closeness close kind=bridge",
            [
                "| strategy | KV | ratio | kept | of | equal | recovered | agreement | KL |",
                f"|{' --- |' * 9}",
                "| full_attention | none | 100% | 1.00 (0.75 to 1.00) | 8 | 0.50 (0.25 to 0.50) "
                "| 1.00 (0.75 to 1.00) | 0.900 (0.650 to 0.900) | 0.123 (-0.127 to 0.123) |",
                "| full_reuse | isolated | 0% |  | 8 | 0.50 (0.25 to 0.50) "
                "| 0.00 (-0.25 to 0.00) | 0.900 (0.650 to 0.900) | 0.123 (-0.127 to 0.123) |",
                "| epic | isolated | 15% | 0.75 (0.50 to 0.75) | 8 | 0.50 (0.25 to 0.50) "
                "| 0.50 (0.25 to 0.50) | 0.900 (0.650 to 0.900) | 0.123 (-0.127 to 0.123) |",
                "| fusionrag | fused | 5% | 0.75 (0.50 to 0.75) | 8 | 0.50 (0.25 to 0.50) "
                "| 0.62 (0.38 to 0.62) | 0.900 (0.650 to 0.900) | 0.123 (-0.127 to 0.123) |",
                "| fusionrag | fused | 15% | 0.88 (0.62 to 0.88) | 8 | 0.50 (0.25 to 0.50) "
                "|  | 0.900 (0.650 to 0.900) | 0.123 (-0.127 to 0.123) |",
            ],
        ),
        (
            "closeness close kind=bridge ratio=0.15 kv=fused",
            [
                "| strategy | KV | ratio | kept | of | equal | recovered | agreement | KL |",
                f"|{' --- |' * 9}",
                "| full_attention | none | 100% | 1.00 (0.75 to 1.00) | 8 | 0.50 (0.25 to 0.50) "
                "| 1.00 (0.75 to 1.00) | 0.900 (0.650 to 0.900) | 0.123 (-0.127 to 0.123) |",
                "| full_reuse | isolated | 0% |  | 8 | 0.50 (0.25 to 0.50) "
                "| 0.00 (-0.25 to 0.00) | 0.900 (0.650 to 0.900) | 0.123 (-0.127 to 0.123) |",
                "| fusionrag | fused | 15% | 0.88 (0.62 to 0.88) | 8 | 0.50 (0.25 to 0.50) "
                "|  | 0.900 (0.650 to 0.900) | 0.123 (-0.127 to 0.123) |",
            ],
        ),
        (
            "leads close ratio=0.15 of=recovered",
            [
                "| questions | KV | epic | random |",
                "| --- | --- | --- | --- |",
                "| bridge | fused (similar:10) | +0.25 (-0.12 to +0.50) |  |",
            ],
        ),
        (
            "published close ratio=0.15",
            [
                "| questions | over | on KV | recovered | kept |",
                "| --- | --- | --- | --- | --- |",
                "| bridge | epic | isolated | **+0.25 (+0.12 to +0.50)** "
                "| +0.00 (-0.12 to +0.12) |",
                "| bridge | fusionrag_paper | fused_as_stored (similar:10) "
                "| **+0.25 (+0.12 to +0.50)** |  |",
            ],
        ),
        (
            "recovered close own-* ratio=0.15",
            [
                "| strategy | KV | bridge | own-few | own-many |",
                f"|{' --- |' * 5}",
                f"| full_reuse | isolated |{' 0.00 (-0.25 to 0.00) |' * 3}",
                f"| epic | isolated |{' 0.50 (0.25 to 0.50) |' * 3}",
                f"| fusionrag | fused |{'  |' * 3}",
            ],
        ),
        (
            "leads own-few own-many ratio=0.15 of=recovered",
            [
                "| questions | KV | epic | random |",
                "| --- | --- | --- | --- |",
                "| own-few | fused | +0.25 (-0.12 to +0.50) |  |",
                "| own-many | fused | +0.25 (-0.12 to +0.50) |  |",
            ],
        ),
        (
            "published own-* ratio=0.3",
            [
                "| questions | over | on KV | recovered | kept |",
                "| --- | --- | --- | --- | --- |",
                "| own-few | epic | isolated | **+0.25 (+0.12 to +0.50)** |  |",
                "| own-many | epic | isolated | **+0.25 (+0.12 to +0.50)** |  |",
            ],
        ),
        (
            "leads run ratio=0.15",
            [
                "| questions | KV | epic | random |",
                "| --- | --- | --- | --- |",
                "| bridge | fused (near) | **+0.20 (+0.10 to +0.30)** | +0.01 (-0.10 to +0.10) |",
            ],
        ),
        (
            "overlap run kind=bridge ratio=0.15",
            [
                "| strategy | KV | with the largest KV deviation | with full attention's |",
                "| --- | --- | --- | --- |",
                "| fusionrag | fused | 0.50 | 0.25 |",
            ],
        ),
        (
            "kinds run ratio=0.15 kv=fused",
            [
                "| strategy | KV | bridge |",
                "| --- | --- | --- |",
                "| full_attention | none | 0.90 (0.80 to 1.00) |",
                "| full_reuse | isolated | 0.30 (0.20 to 0.40) |",
                "| fusionrag | fused | 0.80 (0.70 to 0.90) |",
            ],
        ),
        (
            "kinds own-few own-many ratio=0.15 kv=isolated",
            [
                "| strategy | KV | own-few | own-many |",
                "| --- | --- | --- | --- |",
                f"| full_attention | none |{' 0.50 (0.40 to 0.60) |' * 2}",
                f"| full_reuse | isolated |{' 0.50 (0.40 to 0.60) |' * 2}",
                f"| epic | isolated |{' 0.50 (0.40 to 0.60) |' * 2}",
            ],
        ),
        (
            "leads run run-wrong ratio=0.15",
            [
                "| questions | KV | epic | random |",
                "| --- | --- | --- | --- |",
                "| bridge | fused (near) | **+0.20 (+0.10 to +0.30)** | +0.01 (-0.10 to +0.10) |",
                "| bridge | fused (wrong) | **-0.20 (-0.30 to -0.10)** |  |",
            ],
        ),
        (
            "neighbours few/* kind=bridge ratio=0",
            [
                "| neighbours at most | 0 | 2 | 10 |",
                "| --- | --- | --- | --- |",
                "| default | 0.10 (0.00 to 0.20) |  |  |",
                "| similar | 0.10 (0.00 to 0.20) | 0.20 (0.10 to 0.30) | 0.40 (0.30 to 0.50) |",
            ],
        ),
        (
            "figure f1-by-ratio run kind=bridge kv=fused",
            ["![f1 by ratio run bridge fused](figures/f1-by-ratio-run-bridge-fused.svg)"],
        ),
        (
            "ttft speed",
            [
                "| context | strategy | ratio | kv | TTFT (ms) | quartiles | speed-up | limit "
                "| load | place | probe | select | prefill | first_token | from text |",
                f"|{' --- |' * 15}",
                "| 4,000 | fusionrag | 15% | host | 20.0 | 19.0-22.0 | 5.00x | 16.0 "
                "| 2.5 | 2.5 | 2.5 | 2.5 | 2.5 | 2.5 | 30.0 |",
                "(2026-01-02; a card; bfloat16; torch 2.11, python 3.12; fit: 1.0 ms, 0.500 ms a "
                "computed row and 2.000 ms a million attended keys, R² 0.990.)",
            ],
        ),
        (
            "throughput load",
            [
                "| load | system | ratio | requests/s | spread | tokens/s | TTFT p50 (ms) | p99 "
                "| between tokens p50 (ms) | p99 | memory (GB) | errors |",
                f"|{' --- |' * 12}",
                "| 2.5/s (50% of peak) | full_attention, batches |  | 2.46 | 2.25-2.75 | 78.6 "
                "| 1,234.6 | 2,000.0 | 5.0 |  | 1.5 + 20.0 | 1 |",
                "At 15%, 1,400 ms of prefill and decode steps of 117.5 ms for 8 allow 0.5 "
                "requests/s; 88% of that was reached.",
                "A prompt of 100 tokens has its first token after 300 ms alone, and 900 to 1,300 "
                "ms behind one of 7,900 at 15%, whose longest pass takes 2,000 ms: at most 50% of "
                "a pass and two times the time alone.",
                "(a model; 200 chunks, prompts of 1800 to 2000 tokens, answers of 32, 48 requests "
                "a load or two a client, rounds: 3; 2026-01-02; a card; bfloat16; torch 2.11, "
                "python 3.12.)",
            ],
        ),
        (
            "kernel operator",
            [
                "| keys | ratio | rows | sparse_ms | in_place_ms | masked_ms | flex_ms | dense_ms "
                "| dense / sparse | masked / sparse | error |",
                f"|{' --- |' * 11}",
                "| 4,096 | 15% | 614 | 2 | 2.5 | 5 |  | 9 | 4.50x | 2.50x | 2.0e-03 |",
                "(2026-01-02; a card; bfloat16; torch 2.11, python 3.12.)",
            ],
        ),
        (
            "formats bits",
            [
                "| format | bytes a token | of 16 bits | of 16 bits, 7B shape | load (ms) "
                "| load and place (ms) | error | error, fused |",
                f"|{' --- |' * 8}",
                "| int8 | 2,100 | 0.525x | 0.520x | 0.12 | 1.50 | 1.5e-05 | 0 |",
                "(2026-01-02; a card; bfloat16; torch 2.11, python 3.12.)",
            ],
        ),
        (
            "format-scores bits",
            [
                "| questions | format | n | F1 / EM, 0% | F1 / EM, 15% |",
                "| --- | --- | --- | --- | --- |",
                "| bridge | float32 | 3 | 0.750 / 0.500 | 0.750 / 0.500 |",
                "| bridge | int8 | 3 | 0.625 / 0.500 (-0.125: -0.500 to +0.250) "
                "| 0.625 / 0.500 (-0.125: -0.500 to +0.250) |",
            ],
        ),
        (
            "figure speedup-by-ratio cards/speed",
            ["![speedup by ratio cards speed](figures/speedup-by-ratio-cards-speed.svg)"],
        ),
        (
            "cost cost",
            ["| strategy | 0% | 15% |", "| --- | --- | --- |", "| epic | 3.0% | 18.0% |"],
        ),
    ],
)
def test_tables(mark: str, expected: list[str], results: Path) -> None:
    assert table(mark, results) == expected


def test_without_a_fit_none_is_told(results: Path) -> None:
    assert table("ttft no-fit", results)[-1].endswith("python 3.12.)")


def test_normalised_f1_only_where_there_is_one(results: Path) -> None:
    lines = table("normalised run kind=bridge", results)
    assert lines[-1] == "| fusionrag | fused |  | 0.83 (0.70 to 0.90) |  |"
    assert lines[-2] == "| full_reuse | isolated |  |  |  |"


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("pie run", "Unknown view 'pie'; known are closeness, recovered, f1"),
        ("f1 walk kind=bridge", "no result .*walk.json"),
        ("f1 none/* kind=bridge", "no result .*none"),
        ("f1 run", "lacks 'kind'"),
        ("closeness run kind=bridge", "lacks 'kept'"),  # a result of before it was measured
    ],
)
def test_marks_that_cannot_be_filled(mark: str, said: str, results: Path) -> None:
    with pytest.raises(InvalidInputError, match=said):
        table(mark, results)


def test_figures_are_drawn_where_the_document_shows_them(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    marks = (
        "figure f1-by-ratio run kind=bridge kv=fused",
        "figure f1-by-neighbours few/* kind=bridge ratio=0",
        "figure ttft-by-context cards/speed",
    )
    text = "".join(f"<!-- result: {mark} -->\n<!-- /result -->\n" for mark in marks)
    filled = fill(text, results)
    draw_figures(filled, results, tmp_path / "docs")
    shown = re.findall(r"\((.+)\)", filled)
    assert len(shown) == 3
    for path in shown:
        assert (tmp_path / "docs" / path).read_text().count("<svg") == 1
        assert (tmp_path / "docs" / path).with_suffix(".png").exists()


def test_an_unknown_figure(results: Path, tmp_path: Path) -> None:
    mark = "<!-- result: figure pie run kind=bridge kv=fused -->\n<!-- /result -->"
    with pytest.raises(InvalidInputError, match="figure pie"):
        draw_figures(mark, results, tmp_path)


@pytest.mark.parametrize(
    ("page", "results"),
    [
        ("quality.md", "results/quality"),
        ("quality_bundled.md", "results/quality"),
        ("benchmarks.md", "benchmarks"),
        ("scale.md", "benchmarks"),
    ],
)
def test_a_page_holds_the_results_on_file(page: str, results: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert "<!-- result:" in text
    assert fill(text, ROOT / "docs" / results) == text
    for path in re.findall(r"!\[.*\]\((figures/.+)\.svg\)", text):
        assert (ROOT / "docs" / f"{path}.svg").exists()
        assert (ROOT / "docs" / f"{path}.png").exists()
