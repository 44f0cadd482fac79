"""The last two correctness gates, through the engine: whose KV answers, and never an old one's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fusionrag_integrations import Document, FusionEngine
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.store.kv.types import LayeredKV
from tests.conftest import all_records, town

BORN = "He was born in Paris, in a small house by the river, near the old bridge and the bank."


def life(name: str) -> Document:
    """Two chunks: who it is about, and a sentence that others' lives have too."""
    about = (
        f"{name} founded the company {name} and Sons in the small town by the sea, where it "
        "makes lamps and bells for the ships that pass the old harbour."
    )
    return Document(id=name, text=f"{about}\n\n{BORN}", title=name)


def chunks(engine: FusionEngine, document_id: str) -> list[ChunkRecord]:
    """Of the document with this id, whatever its scope is."""
    catalog = engine.store.catalog
    keys = [key for key in catalog.documents.all() if key.id == document_id]
    return list(catalog.chunks.records(catalog.chunks.ids(keys)).values())


def ask(engine: FusionEngine, texts: list[str], *handles: KVHandle) -> Answer:
    settings = AnswerSettings(selector="none", max_tokens=12, handles=handles, corrected=False)
    return engine.answer(question_prompt(texts, "Where was he born?"), settings)


def fused_keys(engine: FusionEngine) -> set[str]:
    return {r.fused_key for r in all_records(engine.store.catalog)} - {""}


def stored_keys(engine: FusionEngine) -> set[str]:
    return {path.name.split(".")[0] for path in engine.store.path.glob("kv/??/*")}


class TestTheSameSentenceInTwoDocuments:
    @pytest.fixture(autouse=True)
    def lives(self, engine: FusionEngine) -> None:
        engine.ingest([life("Ada"), life("Bela")])
        assert [r.chunk.text for r in chunks(engine, "Ada")][1:] == [BORN]
        assert [r.chunk.text for r in chunks(engine, "Bela")][1:] == [BORN]

    def test_each_has_fused_kv_behind_its_own_document(self, engine: FusionEngine) -> None:
        (ada, ada_born), (bela, bela_born) = chunks(engine, "Ada"), chunks(engine, "Bela")
        assert ada_born.isolated_key == bela_born.isolated_key
        assert ada_born.fused_key != bela_born.fused_key
        neighbours = engine.store.catalog.kv.neighbours
        assert neighbours(ada_born.chunk.id)[-1] == ada.chunk.id
        assert neighbours(bela_born.chunk.id)[-1] == bela.chunk.id

    @pytest.mark.parametrize("name", ["Ada", "Bela"])
    def test_behind_its_document_it_is_that_documents(
        self, engine: FusionEngine, served: list[LayeredKV], name: str
    ) -> None:
        records = chunks(engine, name)
        answer = ask(engine, [r.chunk.text for r in records])
        assert answer.fused_chunks == 2
        assert [kv.key for kv in served] == [r.fused_key for r in records]

    @pytest.mark.parametrize("name", ["Ada", "Bela"])
    def test_alone_it_is_the_handles(
        self, engine: FusionEngine, served: list[LayeredKV], name: str
    ) -> None:
        (_, born) = chunks(engine, name)
        ask(engine, [BORN], born.handle)
        assert [kv.key for kv in served] == [born.fused_key]

    def test_both_in_one_prompt_stay_apart(
        self, engine: FusionEngine, served: list[LayeredKV]
    ) -> None:
        records = [*chunks(engine, "Bela"), *chunks(engine, "Ada")]
        assert ask(engine, [r.chunk.text for r in records]).fused_chunks == 4
        assert [kv.key for kv in served] == [r.fused_key for r in records]

    def test_cut_short_it_is_nobodys(self, engine: FusionEngine, served: list[LayeredKV]) -> None:
        (_, born) = chunks(engine, "Ada")
        about = chunks(engine, "Ada")[0].chunk.text
        assert ask(engine, [about[:100]]).isolated_chunks == 1
        assert ask(engine, [BORN[:70]], born.handle).isolated_chunks == 1
        assert {kv.kind for kv in served} == {"isolated"}

    def test_behind_a_chunk_that_is_nobodys_it_is_nobodys(self, engine: FusionEngine) -> None:
        engine.ingest([replace(life("Ada"), id="Ada's twin")])
        texts = [r.chunk.text for r in chunks(engine, "Ada")]
        answer = ask(engine, texts)
        assert (answer.fused_chunks, answer.isolated_chunks) == (0, 2)

    def test_alone_without_a_handle_it_is_nobodys(
        self, engine: FusionEngine, served: list[LayeredKV]
    ) -> None:
        answer = ask(engine, [BORN])
        assert (answer.fused_chunks, answer.isolated_chunks) == (0, 1)
        assert [(kv.kind, kv.neighbours) for kv in served] == [("isolated", ())]

    def test_the_two_answers_differ(self, engine: FusionEngine) -> None:
        ada, bela = chunks(engine, "Ada")[1], chunks(engine, "Bela")[1]
        answers = {ask(engine, [BORN], r.handle).token_ids for r in (ada, bela)}
        assert len(answers) == 2


class TestAfterANeighbour:
    """Town 0 is fused with town 1, which then changes or goes; town 9 has a scope of its own."""

    @pytest.fixture(autouse=True)
    def towns(self, engine: FusionEngine) -> None:
        engine.ingest([town(0), town(1), replace(town(9), scope="apart")])
        assert ask(engine, self.texts(engine)).fused_chunks == 3

    def texts(self, engine: FusionEngine, name: str = "town-0") -> list[str]:
        return [r.chunk.text for r in chunks(engine, name)]

    def change(self, engine: FusionEngine, stage: str = "embed") -> None:
        """Town 1 changes, and the ingest is interrupted at `stage`."""

        def progress(at: str, done: int, total: int) -> None:
            if at == stage:
                raise KeyboardInterrupt

        changed = replace(town(1), text=town(1).text.replace("river", "sea"))
        with pytest.raises(KeyboardInterrupt):
            engine.ingest([changed], progress=progress)

    @pytest.mark.parametrize("stage", ["embed", "isolated", "fused"])
    def test_changed_isolated_kv_stands_in(
        self, engine: FusionEngine, served: list[LayeredKV], stage: str
    ) -> None:
        self.change(engine, stage)
        served.clear()
        answer = ask(engine, self.texts(engine))
        assert (answer.fused_chunks, answer.isolated_chunks, answer.missed_chunks) == (0, 3, 0)
        assert {kv.kind for kv in served} == {"isolated"}

    def test_deleted_isolated_kv_stands_in(
        self, engine: FusionEngine, served: list[LayeredKV]
    ) -> None:
        engine.delete(["town-1"])
        answer = ask(engine, self.texts(engine))
        assert (answer.fused_chunks, answer.isolated_chunks, answer.missed_chunks) == (0, 3, 0)
        assert {kv.kind for kv in served} == {"isolated"}

    def test_the_answer_is_that_of_a_store_that_never_knew_it(self, engine: FusionEngine) -> None:
        texts = self.texts(engine)
        settings = AnswerSettings(kv="isolated", selector="none", max_tokens=12)
        isolated = engine.answer(question_prompt(texts, "Where was he born?"), settings)
        assert ask(engine, texts).token_ids != isolated.token_ids
        engine.delete(["town-1"])
        assert ask(engine, texts).token_ids == isolated.token_ids

    def test_a_handle_from_before_brings_nothing_back(
        self, engine: FusionEngine, served: list[LayeredKV]
    ) -> None:
        handles = [r.handle for r in chunks(engine, "town-0")]
        texts = self.texts(engine)
        self.change(engine)
        served.clear()
        assert ask(engine, texts, *handles).isolated_chunks == 3
        assert {kv.kind for kv in served} == {"isolated"}

    def test_another_engine_on_the_store_sees_it_too(
        self, engine: FusionEngine, model_dir: Path
    ) -> None:
        other = FusionEngine.from_pretrained(model_dir, store=engine.store.path)
        assert ask(other, self.texts(other)).fused_chunks == 3
        engine.delete(["town-1"])
        assert ask(other, self.texts(other)).isolated_chunks == 3

    def test_chunks_that_were_not_made_with_it_stay_fused(self, engine: FusionEngine) -> None:
        before = ask(engine, self.texts(engine, "town-9"))
        self.change(engine)
        after = ask(engine, self.texts(engine, "town-9"))
        assert after.fused_chunks == before.fused_chunks == 3
        assert after.token_ids == before.token_ids

    def test_the_old_text_is_not_found_any_more(self, engine: FusionEngine) -> None:
        old = self.texts(engine, "town-1")
        self.change(engine)
        answer = ask(engine, old)
        assert (answer.fused_chunks, answer.isolated_chunks) == (0, 0)

    def test_the_next_ingest_fuses_anew_and_clears_the_old_files(
        self, engine: FusionEngine
    ) -> None:
        old = {r.fused_key for name in ("town-0", "town-1") for r in chunks(engine, name)}
        assert old < stored_keys(engine)
        self.change(engine)
        engine.ingest([])
        assert ask(engine, self.texts(engine)).fused_chunks == 3
        assert ask(engine, self.texts(engine, "town-1")).fused_chunks == 3
        assert not old & stored_keys(engine)
        assert fused_keys(engine) < stored_keys(engine)

    def test_a_deleted_ones_files_go_at_once(self, engine: FusionEngine) -> None:
        gone = {
            *(r.isolated_key for r in chunks(engine, "town-1")),
            *(r.fused_key for name in ("town-0", "town-1") for r in chunks(engine, name)),
        }
        engine.delete(["town-1"])
        assert not gone & stored_keys(engine)
        engine.ingest([])
        assert ask(engine, self.texts(engine)).fused_chunks == 3
        assert not gone & stored_keys(engine)
