"""`python -m benchmarks`, run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result

from benchmarks.__main__ import main
from tests import commands
from tests.commands import error_of, numbers, said


def run_command(*arguments: object) -> Result:
    return commands.run_command(*arguments, command=main)


class TestNumbers:
    @pytest.mark.parametrize(("words", "option"), numbers(main))
    def test_have_bounds(self, words: tuple[str, ...], option: str) -> None:
        for value in ("1" + "0" * 400, "nan", "inf", "-inf", "-1"):
            result = run_command(*words, option, value)
            assert result.exit_code == 2
            assert f"Invalid value for '{option}'" in " ".join(result.stderr.split())

    def test_are_taken_by_many_options(self) -> None:
        assert len(numbers(main)) > 20


def test_every_command_is_explained() -> None:
    for name, command in main.commands.items():
        result = run_command(name, "--help")
        assert result.exit_code == 0
        assert command.help
        assert " ".join(command.help.split()[:8]) in " ".join(result.stdout.split())


def test_the_kernel_as_json_and_as_a_table() -> None:
    few = ("kernel", "--keys", 100, "--heads", 4, "--kv-heads", 2, "--repeat", 1)
    rows = said(run_command(*few, "--head-size", 16, "--ratios", "0.5,1", "--json"))["rows"]
    assert [row["ratio"] for row in rows] == [0.5, 1.0]
    lines = run_command(*few).stdout.splitlines()
    assert len([line for line in lines if line.startswith("| 100 |")]) == 3
    assert "--heads 4 is no multiple of --kv-heads 3" in error_of(
        run_command(*few, "--kv-heads", 3)
    )


def test_what_ingest_costs(model_dir: Path) -> None:
    few = ("offline", "--model", model_dir, "--chunk-tokens", 30, "--repeat", 1)
    result = said(run_command(*few, "--neighbours", 2, "--json"))
    assert (result["chunk_tokens"], result["neighbours"]) == (30, 2)
    assert "behind 10 neighbours" in run_command(*few).stdout


class TestStore:
    few = ("store", "--context", 200, "--repeat", 1, "--records", 20, "--ratio", 0)

    def test_as_json(self, model_dir: Path) -> None:
        result = said(run_command(*self.few, "--model", model_dir, "--gap-ms", 20, "--json"))
        assert (result["format"], result["gap_ms"], result["repeat"]) == ("float32", 20.0, 1)
        assert [row["files"] for row in result["load"]["rows"]] == ["cached", "cached", "cold"]
        assert result["lookup"]["records"] == 20
        assert {row["tier"] for row in result["rows"]} == {
            *("cold disk", "warm disk", "host", "device")
        }

    def test_as_a_table_of_some_parts(self, model_dir: Path) -> None:
        some = ("--model", model_dir, "--parts", "load", "--format", "int4")
        lines = run_command(*self.few, *some).stdout.splitlines()
        assert len([line for line in lines if line.startswith("| c")]) == 3
        assert not [line for line in lines if "prefetch" in line or "lookups" in line]

    @pytest.mark.parametrize(
        ("options", "what"),
        [
            (("--parts", "speed"), "Unknown parts speed; choose among load, lookup, prefetch"),
            (("--format", "int3"), "'float32', 'float16', 'bfloat16', 'int8', 'int4'"),
            (("--context", "5000"), "5000 tokens is too long"),
            (("--gap-ms", "-1"), "--gap-ms"),
        ],
    )
    def test_errors_name_what_was_given(
        self, model_dir: Path, options: tuple[str, ...], what: str
    ) -> None:
        assert what in error_of(run_command(*self.few, "--model", model_dir, *options))


def test_what_keeping_new_chunks_saves() -> None:
    options = ("traffic", "--questions", 200, "--known", 50, "--shared", 20)
    saved = said(run_command(*options, "--json"))
    assert saved["traffic"]["questions"] == 200
    words = run_command(*options).stdout
    assert f"({saved['storage_saved']:.0%} less)" in words
