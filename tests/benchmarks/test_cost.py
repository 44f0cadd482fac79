"""Work counted in another depth, against the same counted by hand."""

from __future__ import annotations

import pytest

from benchmarks.cost import count_work
from fusionrag_integrations.bench.strategies import make_strategies
from fusionrag_integrations.bench.suites import Suite
from fusionrag_integrations.demo import MODEL_DIR, suites
from fusionrag_integrations.demo.suites import demo_suite
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.calibration import Calibration

LAYERS, RATIO = 6, 0.2


@pytest.fixture(scope="module")
def suite() -> Suite:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "LEAST_DOCUMENTS", 16)  # enough for one prompt
        return demo_suite(0, 1, ("bridge",))


def test_work_is_what_the_method_says(suite: Suite) -> None:
    model = CausalModel.load(MODEL_DIR)
    names = ("epic", "cacheblend", "prophetkv", "fusionrag")
    strategies = make_strategies(names, [RATIO], ["isolated"])
    # Layer 3 of the demo model's 8 is layer 2 of 6, so the probe runs 3 layers.
    calibration = Calibration(layers=(3,))
    rows = count_work(
        LAYERS, suite, strategies, model, calibration, lambda stage, done, total: None
    )
    work = {row.strategy: row.work for row in rows}
    assert work["full_attention"] == 1.0
    fresh = work["full_reuse"]  # every fresh token through every layer
    chosen = work["epic"] - fresh
    assert chosen == pytest.approx(RATIO * (1 - fresh), abs=0.001)
    # All layers, but not what separates chunks, nor, a second time, what stands before them.
    probe = work["prophetkv"] - fresh - chosen
    assert 0.2 * fresh < probe < 0.4 * fresh
    looked = 2 * (work["fusionrag"] - fresh - chosen)  # with what separates chunks
    by_chunk = 2 / (looked - fresh)  # tokens of the prompt for each chunk, of which two run along
    assert 70 < by_chunk < 90
    assert work["cacheblend"] == pytest.approx(2 / 6 + 4 / 6 * (fresh + chosen))
