"""Selectors that go by the suffix's attention, against loops written from their definitions."""

from __future__ import annotations

import math
from statistics import mean
from types import SimpleNamespace

import pytest
import torch

from fusionrag_integrations.prompt.assembled import AssembledPrompt, Span
from fusionrag_integrations.selectors import make_selector
from fusionrag_integrations.selectors.fusionrag import FusionRAGScorer
from fusionrag_integrations.selectors.fusionrag_paper import fusionrag_paper
from fusionrag_integrations.selectors.infoflow import infoflow, middle_layers
from fusionrag_integrations.selectors.prophetkv import prophetkv
from fusionrag_integrations.store.calibration import Calibration
from tests.selectors.made import FakeProbe, best, known, prompt_with, traced

A, B = known("a", 10), known("b", 7)
# Two runs of one occurrence of a, then b, then a again. Seven tokens of suffix, from 25 on.
PROMPT = prompt_with(
    [(A, 0, 2, 4), (A, 5, 7, 3), (B, 0, 14, 7), (A, 0, 22, 3)], 32, question=(26, 29)
)
OCCURRENCES = ([2, 3, 4, 5, 7, 8, 9], [*range(14, 21)], [22, 23, 24])
# The first layers see everything, the others no further than a few tokens.
SOME_WINDOWS = {"global_layers": (0, 1, 4), "window": 12}


def by_position(scores: torch.Tensor, prompt: AssembledPrompt = PROMPT) -> dict[int, float]:
    assert scores.dtype == torch.float32
    return dict(zip(prompt.chunk_positions, scores.tolist(), strict=True))


def test_paper_scores_are_per_chunk_softmax_of_the_question_in_the_last_layer() -> None:
    probe = FakeProbe(PROMPT)
    expected: dict[int, float] = {}
    for head in probe.logits(5):
        for row, logits in zip(probe.rows, head, strict=True):
            if not 26 <= row < 29:
                continue
            for positions in OCCURRENCES:
                total = sum(math.exp(logits[p]) for p in positions)
                for p in positions:
                    expected[p] = expected.get(p, 0.0) + math.exp(logits[p]) / total
    assert by_position(fusionrag_paper(PROMPT, probe)) == pytest.approx(expected, rel=1e-4)
    assert probe.asked == [(5,)]
    chosen = make_selector("fusionrag_paper", 0.3).select(PROMPT, probe).positions
    assert chosen == best(expected, 5)


def test_paper_gives_every_chunk_the_same_mass() -> None:
    scores = by_position(fusionrag_paper(PROMPT, FakeProbe(PROMPT)))
    for positions in OCCURRENCES:  # three question tokens, four heads
        assert sum(scores[p] for p in positions) == pytest.approx(12.0, rel=1e-5)


@pytest.mark.parametrize("windows", [{}, SOME_WINDOWS])
def test_prophetkv_is_the_mean_over_layers_rows_and_heads(windows: dict) -> None:
    probe = FakeProbe(PROMPT, **windows)
    attention = [probe.attention(layer) for layer in range(6)]
    expected = {}
    for p in PROMPT.chunk_positions:
        values = [row[p] for layer in attention for head in layer for row in head]
        assert len(values) == 6 * 4 * 7
        expected[p] = sum(values) / len(values)
    assert by_position(prophetkv(PROMPT, probe)) == pytest.approx(expected, rel=1e-4)
    chosen = make_selector("prophetkv", 0.4).select(PROMPT, probe).positions
    assert chosen == best(expected, 6)


def l2_over_rows(probe: FakeProbe, layers: tuple[int, ...]) -> dict[int, float]:
    """Mean over heads, then L2 norm over the suffix's rows, then mean over the layers."""
    scores = dict.fromkeys(probe.prompt.chunk_positions, 0.0)
    for layer in layers:
        attention = probe.attention(layer)
        for p in scores:
            rows = [sum(head[r][p] for head in attention) / 4 for r in range(len(probe.rows))]
            scores[p] += math.sqrt(sum(x * x for x in rows)) / len(layers)
    return scores


def shares(probe: FakeProbe, layers: tuple[int, ...]) -> dict[int, float]:
    """The same, each layer's as shares of their sum, mean over the layers."""
    scores = dict.fromkeys(probe.prompt.chunk_positions, 0.0)
    for layer in layers:
        found = l2_over_rows(probe, (layer,))
        for p in scores:
            scores[p] += found[p] / sum(found.values()) / len(layers)
    return scores


def positions_of(spans: list[Span]) -> list[int]:
    return [p for span in spans for p in range(span.start, span.stop)]


def by_staleness(probe: FakeProbe, layers: tuple[int, ...], scores: dict) -> dict[int, float]:
    """Scores times how far the first and the fourth token of each chunk are off, on average over
    the layers that run, but for the first one, where no context counts.
    """
    weighed = {}
    for positions in map(positions_of, probe.prompt.occurrences):
        watched = [positions[0], *positions[3:4]]
        off = mean(probe.off(layer, p) for layer in range(1, max(layers) + 1) for p in watched)
        weighed |= {p: scores[p] * off for p in positions}
    return weighed


@pytest.mark.parametrize(("windows", "layers"), [({}, (3, 4)), (SOME_WINDOWS, (4,))])
def test_infoflow_is_the_norm_over_rows_in_the_middle_layers(windows: dict, layers: tuple) -> None:
    probe = FakeProbe(PROMPT, **windows)
    expected = l2_over_rows(probe, layers)
    assert by_position(infoflow(PROMPT, probe)) == pytest.approx(expected, rel=1e-4)
    assert probe.asked == [layers]
    assert make_selector("infoflow", 0.3).select(PROMPT, probe).positions == best(expected, 5)


@pytest.mark.parametrize(
    ("windows", "layers"),
    [
        ({}, (0, 1, 2, 3, 4, 5)),
        (SOME_WINDOWS, (0, 1, 4)),
        ({"global_layers": (), "window": 24}, (0, 1, 2, 3, 4, 5)),  # all have windows
    ],
)
def test_fusionrag_without_a_calibration_asks_all_layers_that_see_everything(
    windows: dict, layers: tuple[int, ...]
) -> None:
    probe = FakeProbe(PROMPT, **windows)
    expected = by_staleness(probe, layers, shares(probe, layers))
    assert by_position(FusionRAGScorer()(PROMPT, probe)) == pytest.approx(expected, rel=1e-4)
    assert probe.asked == [layers]
    assert probe.watched == [2, 5, 14, 17, 22]  # of a in two runs, of b, of a with three tokens
    assert make_selector("fusionrag", 0.3).select(PROMPT, probe).positions == best(expected, 5)


@pytest.mark.parametrize("windows", [{}, SOME_WINDOWS])
def test_fusionrag_asks_the_layers_of_its_calibration(windows: dict) -> None:
    probe = FakeProbe(PROMPT, **windows)
    calibration = Calibration(layers=(0, 2, 5))
    expected = by_staleness(probe, (0, 2, 5), shares(probe, (0, 2, 5)))
    scores = by_position(FusionRAGScorer(calibration)(PROMPT, probe))
    assert scores == pytest.approx(expected, rel=1e-4)
    chosen = make_selector("fusionrag", 0.3, calibration).select(PROMPT, probe).positions
    assert chosen == best(expected, 5)


def test_the_first_layer_alone_tells_nothing_of_staleness() -> None:
    probe = FakeProbe(PROMPT)
    scores = by_position(FusionRAGScorer(Calibration(layers=(0,)))(PROMPT, probe))
    assert scores == pytest.approx(shares(probe, (0,)), rel=1e-4)


@pytest.mark.parametrize(
    ("layers", "seeing_all", "expected"),
    [
        (1, None, (0,)),  # nothing between .45 and .75: the last
        (3, None, (2,)),  # 1.35 to 2.25
        (8, None, (4, 5, 6)),  # 3.6 to 6
        (28, None, (13, 16, 18, 21)),  # 12.6 to 21: nine layers, every 2.67th from 13 on
        (32, None, (15, 18, 21, 24)),  # 14.4 to 24: ten layers, every third
        (26, (5, 11, 17, 23), (17,)),  # 11.7 to 19.5: only one that sees the whole prompt
        (32, tuple(range(1, 32, 2)), (15, 17, 21, 23)),  # five of them, every 1.33th
        (32, (0, 16, 20, 31), (16, 20)),
        (32, (), (15, 18, 21, 24)),  # all have windows
        (8, (0, 1, 7), (4, 5, 6)),  # those that see all stand elsewhere
    ],
)
def test_middle_layers_by_hand(
    layers: int, seeing_all: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    whole = tuple(range(layers)) if seeing_all is None else seeing_all
    assert middle_layers(SimpleNamespace(num_layers=layers, global_layers=whole)) == expected


SENTENCES = (
    known("s", ["He", " left", ".", " She", " stayed", ".", " So", " did", " I"]),
    known("t", ["Rain", " fell", "\n", "Then", " snow"]),
)
IN_SENTENCES = prompt_with([(SENTENCES[0], 1, 3, 8), (SENTENCES[1], 0, 13, 5)], 24)
GROUPS = ([3, 4], [5, 6, 7], [8, 9, 10], [13, 14, 15], [16, 17])


def test_a_token_counts_as_much_as_the_best_of_its_sentence() -> None:
    probe = FakeProbe(IN_SENTENCES)
    alone = shares(probe, (2,))
    spread = {p: max(alone[q] for q in group) for group in GROUPS for p in group}
    expected = by_staleness(probe, (2,), spread)
    scorer = FusionRAGScorer(Calibration(layers=(2,), whole_sentences=True))
    scores = by_position(scorer(IN_SENTENCES, probe), IN_SENTENCES)
    assert scores == pytest.approx(expected, rel=1e-4)
    assert scores != pytest.approx(alone, rel=1e-2)


def with_traces(*sensitivities: list[float] | None) -> AssembledPrompt:
    """Chunks of four tokens, the first without its first one; None for one never fused."""
    runs = []
    for i, values in enumerate(sensitivities):
        record = known(f"c{i}", 4, traced(values) if values else None)
        runs.append((record, 1, 2, 3) if i == 0 else (record, 0, 1 + 5 * i, 4))
    return prompt_with(runs, 8 + 5 * len(sensitivities))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_relevance_is_weighed_by_sensitivity(exponent: float) -> None:
    prompt = with_traces([9.0, 0.1, 0.2, 0.3], None, [0.0, 1.0, 0.4, 0.7])
    usual = (0.1 + 0.2 + 0.3 + 0.0 + 1.0 + 0.4 + 0.7) / 7  # of those in the prompt
    felt = [0.1, 0.2, 0.3, usual, usual, usual, usual, 0.0, 1.0, 0.4, 0.7]
    probe = FakeProbe(prompt)
    alone = shares(probe, (1, 3))
    weighed = {p: alone[p] * s**exponent for p, s in zip(prompt.chunk_positions, felt, strict=True)}
    expected = by_staleness(probe, (1, 3), weighed)
    scorer = FusionRAGScorer(Calibration(layers=(1, 3), sensitivity=exponent))
    assert by_position(scorer(prompt, probe), prompt) == pytest.approx(expected, rel=1e-4)


def test_sentences_are_spread_before_they_are_weighed() -> None:
    """A token that no context changes stays out, however relevant its sentence."""
    record = known("s", ["He", " left", ".", " She", " stayed"], traced([2.0, 0.0, 1.0, 3.0, 0.5]))
    prompt = prompt_with([(record, 0, 2, 5)], 12)
    probe = FakeProbe(prompt)
    alone = shares(probe, (2,))
    first, second = max(alone[p] for p in (2, 3, 4)), max(alone[p] for p in (5, 6))
    found = dict(zip(range(2, 7), [2 * first, 0.0, first, 3 * second, 0.5 * second], strict=True))
    expected = list(by_staleness(probe, (2,), found).values())
    scorer = FusionRAGScorer(Calibration(layers=(2,), whole_sentences=True, sensitivity=1.0))
    assert scorer(prompt, probe).tolist() == pytest.approx(expected, rel=1e-4)


def test_without_any_trace_the_order_is_as_without_sensitivity() -> None:
    prompt = with_traces(None, None, None)
    probe = FakeProbe(prompt)
    plain = FusionRAGScorer(Calibration(layers=(2,)))(prompt, probe)
    weighed = FusionRAGScorer(Calibration(layers=(2,), sensitivity=1.5))(prompt, probe)
    assert weighed.isfinite().all()
    assert weighed.argsort().tolist() == plain.argsort().tolist()
