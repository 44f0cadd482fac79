"""Starting replicas, with Ray played."""

from __future__ import annotations

from typing import Any, cast

import pytest

from fusionrag_integrations.ray import deploying
from fusionrag_integrations.ray.settings import ServingSettings


@pytest.mark.parametrize("before", [None, ("settings", "an earlier one")])
def test_an_interrupted_start_leaves_what_was_served(
    before: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored: list[Any] = []

    def interrupt(settings: ServingSettings, deployed: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(deploying, "_served", lambda: before)
    monkeypatch.setattr(deploying, "_run", interrupt)
    monkeypatch.setattr(deploying, "_restore", restored.append)
    with pytest.raises(KeyboardInterrupt):
        deploying.deploy(cast("ServingSettings", None))
    assert restored == [before]
