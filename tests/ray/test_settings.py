"""What is served on Ray, and the command's options of it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.cli import main
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.ray.settings import EngineSettings, Replicas, ServingSettings
from fusionrag_integrations.store.kv.disk_budget import Budgets


def test_settings_travel_and_open_the_engine(engine: FusionEngine, model_dir: Path) -> None:
    given = EngineSettings(
        str(model_dir),
        str(engine.store.path),
        "tests.embeddings:LangChainLexical",
        budgets=Budgets(host=7),
    )
    settings = pickle.loads(pickle.dumps(ServingSettings(given)))  # noqa: S301 as Ray does
    assert settings == ServingSettings(given)
    plain = EngineSettings(str(model_dir), str(engine.store.path), budgets=Budgets(host=7))
    with plain.open() as opened:
        assert opened.store.path == engine.store.path
        assert opened.metrics().host.budget == 7


def test_a_salt_is_not_shown() -> None:
    assert "secret" not in repr(EngineSettings("model", "store", salt="secret"))


@pytest.mark.parametrize(
    "given", [{"least": 0}, {"least": 2}, {"cpus": -1.0}, {"gpus": float("nan")}, {"most": "2"}]
)
def test_replicas_that_cannot_be(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Replicas(**given)


def serve(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["serve", "--store", "none", *arguments])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--replicas", "2"), "--replicas can only be given with --ray"),
        (
            ("--replica-cpus", "2", "--replica-gpus", "1"),
            "--replica-cpus, --replica-gpus can only be given with --ray",
        ),
        (("--ray", "--replicas", "3:2"), "'3:2' has more at least than at most"),
        (("--ray", "--replicas", "0"), "0 is not in the range"),
        (("--ray", "--replicas", "1:"), "'' is not a valid integer"),
        (("--ray", "--replica-gpus", "-1"), "-1.0 is not in the range"),
        (("--ray",), "There is no store at"),
    ],
)
def test_options_that_cannot_be(arguments: tuple[str, ...], told: str) -> None:
    result = serve(*arguments)
    assert result.exit_code in (1, 2)
    assert told in " ".join(result.stderr.split())


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusionrag_integrations.cli.serve.find_spec", lambda name: None)
    told = " ".join(serve("--ray").stderr.split())
    assert "`fusionrag serve --ray` needs ray, fastapi" in told
    assert "pip install 'fusionrag-integrations[ray]'" in told
