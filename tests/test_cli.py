"""The command line, run in this process, with a tiny model's directory as --model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from fusionrag_integrations.cli import main
from fusionrag_integrations.documents.embedding import LexicalEmbedder
from fusionrag_integrations.ingest import chunk_prefill as ingest
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.layout import CATALOG_FILE
from tests.commands import numbers
from tests.conftest import town

Run = Callable[..., Result]


class OtherEmbedding(LexicalEmbedder):
    """Another, under the built-in one's name."""

    def embed_query(self, text: str) -> list[float]:
        return super().embed_query(text[::-1])


def run_command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def said(result: Result) -> Any:
    """The JSON that a command printed."""
    return json.loads(result.stdout)


def error_of(result: Result) -> str:
    """The one line that a refused command says."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)  # no traceback of ours
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    (line,) = [line for line in lines if "Loading" not in line]
    return line


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two text files and a third document in JSON lines."""
    path = tmp_path / "files"
    path.mkdir()
    for number in (0, 1):
        (path / f"town-{number}.txt").write_text(town(number).text)
    (path / "more.jsonl").write_text(json.dumps({"id": "town-2", "text": town(2).text}))
    return path


@pytest.fixture
def index(model_dir: Path, files: Path, tmp_path: Path) -> Run:
    """`fusionrag index` over the files into the test's store."""

    def run(*options: object) -> Result:
        where = ("--store", tmp_path / "store", "--model", model_dir)
        return run_command("index", files, *where, "--chunk-tokens", 48, *options)

    return run


@pytest.fixture(scope="module")
def made(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was made by the command; nobody changes it."""
    path = tmp_path_factory.mktemp("made")
    for number in range(3):
        (path / f"town-{number}.txt").write_text(town(number).text)
    where = ("--store", path / "store", "--model", model_dir)
    assert run_command("index", path, *where, "--chunk-tokens", 48).exit_code == 0
    return path / "store"


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of that store, to be damaged."""
    return shutil.copytree(made, tmp_path / "copy")


def commands() -> list[tuple[str, click.Command]]:
    return sorted(main.commands.items())


class TestHelp:
    @pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
    def test_every_command_and_option_is_explained(self, name: str, command: click.Command) -> None:
        result = run_command(name, "--help")
        assert result.exit_code == 0
        assert command.help
        shown = " ".join(result.stdout.split())
        assert " ".join(command.help.split()[:12]) in shown
        options = [p for p in command.params if isinstance(p, click.Option)]
        assert all(option.help for option in options)

    def test_the_group_lists_its_commands(self) -> None:
        result = run_command("--help")
        for name, _ in commands():
            assert f"\n  {name} " in result.stdout

    def test_an_unknown_command_is_a_usage_error(self) -> None:
        result = run_command("answer")
        assert result.exit_code == 2
        assert "No such command" in result.stderr


class TestNumbers:
    @pytest.mark.parametrize(("words", "option"), numbers(main))
    def test_have_bounds(self, words: tuple[str, ...], option: str) -> None:
        for value in ("1" + "0" * 400, "nan", "inf", "-inf", "-1"):
            result = run_command(*words, option, value)
            assert result.exit_code == 2
            assert f"Invalid value for '{option}'" in " ".join(result.stderr.split())

    def test_are_taken_by_many_options(self) -> None:
        assert len(numbers(main)) >= 15


@pytest.mark.parametrize("name", ["index", "ask", "delete", "inspect", "verify", "repair", "check"])
def test_a_path_that_can_be_none(name: str) -> None:
    for path, said in (("a\0b", "holds a null byte"), ("", "it is empty")):
        result = run_command(name, "--store", path)
        assert result.exit_code == 2
        assert said in result.stderr


def test_a_storage_that_ends_with_the_command_is_refused() -> None:
    result = run_command("index", "docs", "--store", "Memory://store", "--model", "demo")
    assert result.exit_code == 2
    assert "Memory://store is gone when this command ends" in " ".join(result.stderr.split())


def test_names_of_files_that_are_no_unicode(index: Run, files: Path) -> None:
    (files / ".hidden\udcff").mkdir()
    assert "hidden\\udcff" in index("--json").stdout
    (files / "b\udcff.txt").write_text("Another text.")
    assert "b\\xff.txt: its name is not UTF-8 text; rename" in error_of(index())


def test_a_store_whose_path_is_no_unicode_is_not_made(
    files: Path, model_dir: Path, tmp_path: Path
) -> None:
    store = tmp_path / "\udcff"
    result = run_command("index", files, "--store", store, "--model", model_dir)
    assert "half a surrogate pair" in error_of(result)
    assert not store.exists()


class TestIndex:
    def test_reports_what_it_did(self, index: Run) -> None:
        report = said(index("--json"))
        assert (report["documents_new"], report["chunks"]) == (3, 9)
        assert (report["isolated_computed"], report["fused_computed"]) == (9, 9)
        again = index()
        assert again.exit_code == 0
        assert "0 documents added, 0 replaced, 3 unchanged, 0 deleted; 9 chunks" in again.stdout

    def test_a_changed_file_is_replaced(self, index: Run, files: Path) -> None:
        index()
        (files / "town-0.txt").write_text(town(5).text)
        report = said(index("--json"))
        assert (report["documents_changed"], report["documents_unchanged"]) == (1, 2)
        assert report["isolated_computed"] == 3

    def test_goes_on_after_an_interrupt(self, index: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        prefill, computed = ingest.prefill_chunks, []

        def interrupted(*args: Any) -> Any:
            if len(computed) == 4:
                raise KeyboardInterrupt
            kvs = prefill(*args)
            computed.extend(kvs)
            return kvs

        monkeypatch.setattr(ingest, "PASS_TOKENS", 1)
        monkeypatch.setattr(ingest, "prefill_chunks", interrupted)
        result = index()
        assert result.exit_code == 130
        assert "run the command again" in result.stderr
        monkeypatch.undo()
        report = said(index("--json"))
        assert (report["isolated_computed"], report["fused_computed"]) == (5, 9)

    def test_update_deletes_what_is_no_longer_there(self, index: Run, files: Path) -> None:
        index()
        (files / "town-0.txt").unlink()
        (files / "town-3.txt").write_text(town(3).text)
        assert said(index("--json"))["documents_deleted"] == 0
        (files / "town-3.txt").unlink()
        report = said(index("--json", "--update"))
        assert (report["documents_deleted"], report["documents_unchanged"]) == (2, 2)
        assert report["chunks"] == 6

    def test_update_to_nothing_deletes_nothing(self, index: Run, files: Path) -> None:
        index()
        for file in files.iterdir():
            file.unlink()
        assert "No documents found" in error_of(index("--update"))
        (files / "town-0.txt").write_text(town(0).text)
        assert said(index("--json"))["chunks"] == 9

    def test_an_unreadable_file_is_named(self, index: Run, files: Path) -> None:
        (files / "bad.txt").write_bytes(b"good\n\xff\xfe bad")
        error = error_of(index())
        assert "DocumentFormatError" in error
        assert "bad.txt, line 2: not UTF-8" in error

    def test_a_bad_row_is_named_with_its_line(self, index: Run, files: Path) -> None:
        (files / "bad.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
        assert "bad.jsonl, line 2" in error_of(index())

    def test_a_kind_of_file_that_is_not_read(self, model_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "paper.pdf").write_bytes(b"%PDF")
        where = ("--store", tmp_path / "store", "--model", model_dir)
        error = error_of(run_command("index", tmp_path / "paper.pdf", *where))
        assert "accepted: .txt, .md, .jsonl" in error

    def test_a_path_that_is_not_there_is_a_usage_error(self, tmp_path: Path) -> None:
        result = run_command("index", tmp_path / "none", "--store", tmp_path / "store")
        assert result.exit_code == 2
        assert "does not exist" in result.stderr

    def test_other_chunk_tokens_than_the_stores(self, index: Run) -> None:
        index()
        assert "needs a new store" in error_of(index("--chunk-tokens", 64))

    def test_what_is_no_model(self, files: Path, tmp_path: Path) -> None:
        where = ("--store", tmp_path / "store", "--model", files)
        assert "InvalidInputError" in error_of(run_command("index", files, *where))
        assert not (tmp_path / "store").exists()


class TestAsk:
    QUESTION = "What is in town number 1?"

    def ask(self, store: Path, model_dir: Path, *options: object) -> Result:
        where = ("--store", store, "--model", model_dir, "--max-tokens", 4)
        return run_command("ask", self.QUESTION, *where, *options)

    def test_json_says_how_the_answer_came_about(self, made: Path, model_dir: Path) -> None:
        result = said(self.ask(made, model_dir, "--json", "-k", 3))
        assert result["question"] == self.QUESTION
        assert result["chunks"] == {"fused": 2, "isolated": 1, "missed": 0, "captured": 0}
        assert result["usage"]["completion_tokens"] <= 4
        assert result["ttft_ms"]["total"] > 0
        assert len(result["retrieved"]) == 3
        for chunk in result["retrieved"]:
            assert chunk["document_id"] == "town-1.txt"
            assert chunk["fused_key"]

    @pytest.mark.parametrize("kv", ["fused", "isolated"])
    def test_selector_all_answers_like_full_attention(
        self, made: Path, model_dir: Path, kv: str
    ) -> None:
        full = said(self.ask(made, model_dir, "--json", "--kv", "none"))
        same = said(self.ask(made, model_dir, "--json", "--kv", kv, "--selector", "all"))
        assert same["answer"] == full["answer"]
        assert same["usage"]["recompute_ratio"] == 1.0

    def test_the_ratio_is_obeyed(self, made: Path, model_dir: Path) -> None:
        usage = said(self.ask(made, model_dir, "--json", "--ratio", 0.5))["usage"]
        assert usage["recompute_ratio"] == pytest.approx(0.5, abs=0.01)

    def test_text_gives_the_answer_alone_on_stdout(self, made: Path, model_dir: Path) -> None:
        result = self.ask(made, model_dir)
        answer = said(self.ask(made, model_dir, "--json"))["answer"]
        assert result.stdout == f"{answer}\n"
        assert "5 chunks, 4 fused and 1 isolated;" in result.stderr

    def test_a_page_explains_it(self, made: Path, model_dir: Path, tmp_path: Path) -> None:
        page = tmp_path / "why.html"
        result = self.ask(made, model_dir, "--explain", page)
        assert result.exit_code == 0
        assert page.read_text(encoding="utf-8").count("<article") == 5
        nowhere = self.ask(made, model_dir, "--explain", tmp_path / "none" / "why.html")
        assert "There is no directory" in error_of(nowhere)

    def test_what_was_not_reused_is_told(self, made: Path, model_dir: Path) -> None:
        result = self.ask(made, model_dir, "--kv", "none")
        assert "The whole prompt was computed: the settings ask for it" in result.stderr

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--ratio", 1.5), "1.5 is not in the range 0.0<=x<=1.0"),
            (("--max-tokens", 0), "0 is not in the range 1<=x<=1000000"),
            (("-k", 0), "0 is not in the range 1<=x<=1000000"),
        ],
    )
    def test_numbers_that_cannot_be(
        self, made: Path, model_dir: Path, options: tuple[object, ...], message: str
    ) -> None:
        result = self.ask(made, model_dir, *options)
        assert result.exit_code == 2
        assert message in result.stderr

    def test_an_unknown_selector(self, made: Path, model_dir: Path) -> None:
        error = error_of(self.ask(made, model_dir, "--selector", "best"))
        assert "Known selectors: none, all, random, cacheblend" in error

    def test_the_store_remembers_its_model(self, made: Path, model_dir: Path) -> None:
        where = ("--store", made, "--max-tokens", 4, "--json")
        remembered = said(run_command("ask", "Which town?", *where))
        named = said(run_command("ask", "Which town?", *where, "--model", model_dir))
        assert remembered["answer"] == named["answer"]
        assert remembered["usage"] == named["usage"]

    def test_an_embedding_from_a_module(self, made: Path, model_dir: Path) -> None:
        name = "fusionrag_integrations.embedding:LexicalEmbedder"
        assert self.ask(made, model_dir, "--embedding", name).exit_code == 0
        assert "indexed with the embedding" in error_of(
            self.ask(made, model_dir, "--embedding", "tests.test_cli:OtherEmbedding")
        )

    @pytest.mark.parametrize("name", ["nowhere:Thing", "tests.test_cli:Nothing", "json", ":"])
    def test_an_embedding_that_cannot_be_imported(
        self, made: Path, model_dir: Path, name: str
    ) -> None:
        assert "MODULE:NAME" in error_of(self.ask(made, model_dir, "--embedding", name))

    def test_an_empty_question(self, made: Path, model_dir: Path) -> None:
        result = run_command("ask", " ", "--store", made, "--model", model_dir)
        assert "question is empty" in error_of(result)

    def test_no_store_makes_none(self, tmp_path: Path, model_dir: Path) -> None:
        error = error_of(self.ask(tmp_path / "none", model_dir))
        assert "StoreNotFoundError" in error
        assert not (tmp_path / "none").exists()

    def test_damaged_kv_is_counted_and_answered_around(self, store: Path, model_dir: Path) -> None:
        expected = said(self.ask(store, model_dir, "--json", "--kv", "none"))["answer"]
        for path in store.glob("kv/??/*"):
            path.write_bytes(path.read_bytes()[:-1])
        result = said(self.ask(store, model_dir, "--json"))
        assert result["chunks"] == {"fused": 0, "isolated": 0, "missed": 5, "captured": 0}
        assert result["answer"] == expected


class TestAskInScopes:
    @pytest.fixture
    def scoped(self, model_dir: Path, tmp_path: Path) -> Path:
        rows = [{"id": f"town-{i}", "text": town(i).text, "scope": "ab"[i]} for i in (0, 1)]
        (tmp_path / "towns.jsonl").write_text("\n".join(map(json.dumps, rows)))
        where = ("--store", tmp_path / "store", "--model", model_dir, "--chunk-tokens", 48)
        assert run_command("index", tmp_path / "towns.jsonl", *where).exit_code == 0
        return tmp_path / "store"

    @pytest.mark.parametrize(
        ("scopes", "documents"),
        [([], {"town-0", "town-1"}), (["a"], {"town-0"}), (["a", "b"], {"town-0", "town-1"})],
    )
    def test_chunks_come_from_these_alone(
        self, scoped: Path, model_dir: Path, scopes: list[str], documents: set[str]
    ) -> None:
        options = [option for scope in scopes for option in ("--scope", scope)]
        where = ("--store", scoped, "--model", model_dir, "--max-tokens", 2, "-k", 6)
        result = said(run_command("ask", "Where is house 7?", *where, "--json", *options))
        assert {hit["document_id"] for hit in result["retrieved"]} == documents
        chunks = result["chunks"]
        assert (chunks["fused"], chunks["isolated"]) == (3 * len(documents) - 1, 1)

    def test_a_scope_that_holds_nothing_is_named(self, scoped: Path, model_dir: Path) -> None:
        where = ("--store", scoped, "--model", model_dir, "--scope", "none")
        assert "holds no chunks in scope none" in error_of(run_command("ask", "Where?", *where))


class TestDelete:
    def test_documents_go_by_their_ids_without_a_model(self, store: Path, model_dir: Path) -> None:
        result = run_command("delete", "town-0.txt", "town-2.txt", "--store", store)
        assert result.exit_code == 0
        assert "2 documents deleted" in result.stdout
        facts = said(run_command("inspect", "--store", store, "--json"))
        assert (facts["documents"], facts["chunks"], facts["records"]) == (1, 3, 3)
        asked = run_command("ask", "Where is house 7?", "--store", store, "--model", model_dir)
        assert asked.exit_code == 0
        assert "0 fused and 3 isolated" in asked.stderr

    def test_an_unknown_id_is_named_and_the_others_go(self, store: Path) -> None:
        result = run_command("delete", "town-0.txt", "town-9.txt", "--store", store)
        assert result.exit_code == 1
        assert "1 documents deleted" in result.stdout
        assert "no document 'town-9.txt'" in result.stderr
        again = run_command("delete", "town-0.txt", "--store", store, "--json")
        assert said(again) == {"deleted": 0, "unknown": ["town-0.txt"]}

    def test_another_embedding_is_refused(self, store: Path) -> None:
        options = ("--store", store, "--embedding", f"{__name__}:OtherEmbedding")
        assert "StoreMismatchError" in error_of(run_command("delete", "town-0.txt", *options))


class TestInspect:
    def test_json_counts_what_is_there(self, made: Path, model_dir: Path) -> None:
        facts = said(run_command("inspect", "--store", made, "--json"))
        assert facts["model_source"] == str(model_dir.resolve())
        assert facts["chunk_tokens"] == 48
        assert (facts["documents"], facts["chunks"], facts["fused_chunks"]) == (3, 9, 9)
        assert (facts["records"], facts["missing_records"]) == (18, 0)
        assert facts["kv_bytes"] == sum(p.stat().st_size for p in made.glob("kv/??/*"))

    def test_missing_records_are_counted(self, store: Path) -> None:
        next(store.glob("kv/??/*")).unlink()
        facts = said(run_command("inspect", "--store", store, "--json"))
        assert (facts["records"], facts["missing_records"]) == (17, 1)

    def test_text_names_the_same_facts(self, made: Path) -> None:
        result = run_command("inspect", "--store", made)
        assert result.exit_code == 0
        assert "fused chunks" in result.stdout


class TestVerify:
    def test_a_sound_store(self, made: Path) -> None:
        result = run_command("verify", "--store", made, "--json")
        assert result.exit_code == 0
        assert said(result) == {"records": 18, "problems": []}

    def problem(self, store: Path) -> dict[str, str]:
        """The one problem of a store, which the text form names too."""
        result = run_command("verify", "--store", store, "--json")
        assert result.exit_code == 1
        (problem,) = said(result)["problems"]
        text = run_command("verify", "--store", store)
        assert text.exit_code == 1
        assert f"{problem['error']}: {problem['message']}" in text.stdout
        return dict(problem)

    def test_a_flipped_byte(self, store: Path) -> None:
        path = sorted(store.glob("kv/??/*"))[7]
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        problem = self.problem(store)
        assert problem["error"] == "KVCorruptError"
        assert problem["path"] == str(path)
        assert path.name in problem["message"]

    def test_a_record_of_another_model(self, store: Path) -> None:
        with Catalog.open(store / CATALOG_FILE) as catalog:
            ours = RecordStore(LocalKVFiles(store / "kv"), catalog.info.record_signature, "float32")
        key = next(ours.keys())
        RecordStore(LocalKVFiles(store / "kv"), "another", "float32").put(ours.get(key).dense())
        problem = self.problem(store)
        assert problem["error"] == "KVForeignError"
        assert "another model" in problem["message"]

    def test_a_file_that_is_no_record(self, store: Path) -> None:
        (store / "kv" / "notes.txt").write_text("hello")
        problem = self.problem(store)
        assert problem["error"] == "KVForeignError"
        assert "notes.txt" in problem["path"]

    def test_a_missing_record(self, store: Path) -> None:
        path = next(store.glob("kv/??/*"))
        path.unlink()
        problem = self.problem(store)
        assert problem["error"] == "KVMissingError"
        assert path.name.split(".")[0] in problem["message"]
        assert "fusionrag index" in run_command("verify", "--store", store).stdout


@pytest.mark.parametrize("name", ["inspect", "verify"])
def test_no_store_is_named_and_not_made(name: str, tmp_path: Path) -> None:
    error = error_of(run_command(name, "--store", tmp_path / "none"))
    assert "StoreNotFoundError" in error
    assert str(tmp_path / "none") in error
    assert not (tmp_path / "none").exists()


def test_a_damaged_catalog_is_named_and_fixed(store: Path) -> None:
    inspected = said(run_command("inspect", "--store", store, "--json"))
    for path in store.glob("catalog.sqlite*"):
        path.write_bytes(b"no database" * 99)
    assert "StoreError" in error_of(run_command("inspect", "--store", store))
    found = run_command("verify", "--store", store)
    assert found.exit_code == 1
    assert "StoreError: The catalog" in found.stdout
    repaired = run_command("repair", "--store", store)
    assert repaired.exit_code == 0
    assert "fixed: StoreError: The catalog" in repaired.stdout
    assert run_command("verify", "--store", store).exit_code == 0
    assert said(run_command("inspect", "--store", store, "--json")) == inspected


def test_damaged_kv_is_removed_and_then_missing(store: Path) -> None:
    path = sorted(store.glob("kv/??/*"))[3]
    path.write_bytes(b"x")
    repaired = run_command("repair", "--store", store)
    assert repaired.exit_code == 0
    assert "fusionrag index" in repaired.stdout
    assert not path.exists()
    (problem,) = said(run_command("verify", "--store", store, "--json"))["problems"]
    assert problem["error"] == "KVMissingError"
    assert problem["path"] == str(path)


def test_a_store_whose_making_was_cut_off_is_made(
    files: Path, model_dir: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / CATALOG_FILE).touch()
    estimate = ("check", "--store", store, "--model", model_dir, "--estimate", files)
    assert run_command(*estimate).exit_code == 0
    assert "There is no store" in error_of(run_command("inspect", "--store", store))
    assert run_command("index", files, "--store", store, "--model", model_dir).exit_code == 0
