"""`fusionrag bench ttft`, run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result

from tests.commands import error_of, run_command, said


class TestTTFT:
    def run(self, *options: object) -> Result:
        return run_command("bench", "ttft", "--context", 200, "--repeat", 1, *options)

    def test_as_json(self, model_dir: Path) -> None:
        result = said(self.run("--model", model_dir, "--ratios", "0,0.15", "--json"))
        assert [(row["strategy"], row["ratio"], row["kv"]) for row in result["rows"]] == [
            ("full_attention", 1.0, "none"),
            ("fusionrag", 0.0, "host"),
            ("fusionrag", 0.15, "host"),
        ]
        assert {"hardware", "device", "dtype", "dense_attention", "versions"} <= result.keys()

    def test_as_a_table_of_the_demo(self) -> None:
        result = self.run("--strategies", "epic,random", "--ratios", "0.1", "--kv", "disk")
        assert result.exit_code == 0, result.stderr
        lines = [line.split("|") for line in result.stdout.splitlines() if line.startswith("|")]
        assert [line[2].strip() for line in lines[2:]] == ["full_attention", "epic", "random"]
        assert len({len(line) for line in lines}) == 1

    def test_a_prefix_cache_is_timed(self, model_dir: Path) -> None:
        given = ("--model", model_dir, "--strategies", "prefix_cache,epic:published", "--json")
        result = said(self.run(*given, "--ratios", "0.1"))
        names = [row["strategy"] for row in result["rows"]]
        assert names == ["full_attention", "prefix_cache", "epic"]

    @pytest.mark.parametrize(
        ("options", "what"),
        [
            (("--config", "gpt"), "'gpt'; known are qwen2.5-0.5b"),
            (("--config", "demo", "--model", "x"), "not both"),
            (("--ratios", "2"), "'--ratios': 2.0 is not in the range 0.0<=x<=1.0"),
            (("--context", "many"), "'--context': 'many' is not a valid integer range"),
            (("--context", "0"), "'--context': 0 is not in the range 1<=x<="),
            (("--strategies", "best"), "Unknown strategies best"),
            (("--dtype", "int3"), "Unknown dtype 'int3'"),
            (("--device", "tpu9"), "Unknown device 'tpu9'"),
        ],
    )
    def test_errors_name_what_was_given(self, options: tuple[str, ...], what: str) -> None:
        assert what in error_of(self.run(*options))
