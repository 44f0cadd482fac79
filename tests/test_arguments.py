"""Arguments that nothing takes, and values of the wrong kind: refused by name, at every door."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.llms import ChatMessage

import fusionrag_integrations.langchain as lc
import fusionrag_integrations.llama_index as li
from fusionrag_integrations import AnswerSettings, Document, FusionEngine, Passage, Store
from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.documents.readers import read_documents
from fusionrag_integrations.errors import InvalidInputError, UnknownSelectorError
from fusionrag_integrations.ingest.neighbours import Neighbours
from fusionrag_integrations.store.calibration import Calibration, read_calibration
from fusionrag_integrations.store.kv.disk_budget import Budgets
from tests.conftest import document_ids, nested, town

QUESTION = "Where is house 7 of town number 1?"
MODELS = (lc.FusionRAGLLM, lc.ChatFusionRAG, li.FusionRAGLLM)
RETRIEVERS = (lc.FusionKVRetriever, li.FusionKVRetriever)


@pytest.fixture(scope="module")
def engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    store = tmp_path_factory.mktemp("arguments") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48)
    engine.ingest([town(0), town(1)])
    return engine


class TestUnknownArguments:
    @pytest.mark.parametrize("make", MODELS)
    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("scope", "Did you mean 'scopes'"),
            ("temprature", "Did you mean 'temperature'"),
            ("model_kwargs", r"FusionEngine\.from_pretrained"),
            ("pipeline_kwargs", "each of its entries"),
            ("do_sample", "Give temperature"),
            ("quark", "Accepted are .*max_tokens.*top_p"),
        ],
    )
    def test_of_a_model(
        self, engine: FusionEngine, make: Callable[..., Any], name: str, hint: str
    ) -> None:
        with pytest.raises(InvalidInputError, match=f"takes no '{name}'.*{hint}"):
            make(engine=engine, **{name: 5})

    @pytest.mark.parametrize("make", [*RETRIEVERS, li.FusionKVTransform])
    def test_of_a_retriever_or_transform(
        self, engine: FusionEngine, make: Callable[..., Any]
    ) -> None:
        name = "scopes" if make is li.FusionKVTransform else "scope"
        with pytest.raises(InvalidInputError, match=f"takes no '{name}'. Did you mean 'scope"):
            make(engine=engine, **{name: ["board"]})

    @pytest.mark.parametrize(
        ("make", "meant"), zip(RETRIEVERS, ("k", "similarity_top_k"), strict=True)
    )
    def test_of_a_number_of_chunks(self, engine: FusionEngine, make: Any, meant: str) -> None:
        with pytest.raises(InvalidInputError, match=f"takes no 'top_k'. Did you mean '{meant}'"):
            make(engine=engine, top_k=3)

    @pytest.mark.parametrize("make", MODELS)
    def test_transformers_name_for_the_longest_answer_is_known(
        self, engine: FusionEngine, make: Callable[..., Any]
    ) -> None:
        assert make(engine=engine, max_new_tokens=5).max_tokens == 5
        with pytest.raises(InvalidInputError, match="are the same; give one"):
            make(engine=engine, max_new_tokens=5, max_tokens=6)
        with pytest.raises(InvalidInputError, match="max_tokens is 0"):
            make(engine=engine, max_new_tokens=0)

    def test_of_a_call(self, engine: FusionEngine) -> None:
        llm, chat = lc.FusionRAGLLM(engine=engine), lc.ChatFusionRAG(engine=engine)
        li_llm = li.FusionRAGLLM(engine=engine)
        said = [ChatMessage(content=QUESTION)]
        calls: list[Callable[..., Any]] = [
            lambda **given: llm.invoke(QUESTION, **given),
            lambda **given: llm.bind(**given).invoke(QUESTION),
            lambda **given: list(llm.stream(QUESTION, **given)),
            lambda **given: chat.invoke(QUESTION, **given),
            lambda **given: li_llm.complete(QUESTION, **given),
            lambda **given: li_llm.chat(said, **given),
        ]
        for call in calls:
            call(max_new_tokens=1)
            with pytest.raises(
                InvalidInputError, match=r"takes no 'scope'\. Did you mean 'scopes'"
            ):
                call(scope=["board"])
        with pytest.raises(InvalidInputError, match=r"takes no 'top_k'\. Did you mean 'k'"):
            lc.FusionKVRetriever(engine=engine).invoke(QUESTION, top_k=1)

    @pytest.mark.parametrize("least", [nan, 1.5, -2])
    def test_of_a_similarity(self, engine: FusionEngine, least: float) -> None:
        with pytest.raises(InvalidInputError, match="score_threshold is"):
            lc.FusionKVRetriever(engine=engine, score_threshold=least)

    def test_of_an_empty_path(self, engine: FusionEngine, model_dir: Path) -> None:
        for make in (
            lambda: FusionEngine.from_pretrained(model_dir, store=""),
            lambda: FusionEngine.open(engine.model, ""),
            lambda: Store.open(""),
            lambda: lc.FusionKVRetriever.from_store(""),
            lambda: li.FusionKVRetriever.from_store(""),
        ):
            with pytest.raises(
                InvalidInputError, match=r"is empty; give .*, '\.' for this directory"
            ):
                make()

    def test_what_frameworks_have_or_pass_on_is_none(self, engine: FusionEngine) -> None:
        llm = lc.FusionRAGLLM(
            engine=engine, max_tokens=1, tags=["t"], metadata={"m": 1}, name="n", verbose=True
        )
        assert llm.bind(stop=["."]).invoke(QUESTION, stream=False) is not None
        assert lc.ChatFusionRAG(engine=engine, max_tokens=1, cache=False).invoke(
            QUESTION, stream=True, ls_structured_output_format={"schema": {}}
        )
        li.FusionRAGLLM(engine=engine, max_tokens=1, system_prompt="s").complete(
            QUESTION, formatted=True
        )

    def test_of_the_engine(self, engine: FusionEngine, model_dir: Path, tmp_path: Path) -> None:
        make: Any = FusionEngine.from_pretrained
        with pytest.raises(InvalidInputError, match=r"takes no 'dtypes'\. Did you mean 'dtype'"):
            make(model_dir, store=tmp_path / "store", dtypes="float32")
        assert not (tmp_path / "store").exists()


class TestKindsOfSettings:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"ratio": "x"}, "ratio is 'x'; give a number"),
            ({"ratio": True}, "ratio is True; give a number"),
            ({"max_tokens": True}, "max_tokens is True; give a whole number"),
            ({"max_tokens": 1.5}, "max_tokens is 1.5; give a whole number"),
            ({"temperature": nan}, "temperature is nan"),
            ({"temperature": inf}, "temperature is inf"),
            ({"temperature": 1e-320}, r"temperature is 1e-320; it must lie in \[1e-06, 1e\+06\]"),
            ({"temperature": "hot"}, "temperature is 'hot'; give a number"),
            ({"top_p": nan}, "top_p is nan"),
            ({"repetition_penalty": nan}, "repetition_penalty is nan"),
            ({"repetition_penalty": inf}, "repetition_penalty is inf"),
            ({"seed": 10**30}, "seed is 1000"),
            ({"seed": 1.5}, "seed is 1.5; give a whole number, or None"),
            ({"scopes": "board"}, "scopes is 'board'; give a"),
            ({"stop": 5}, "stop is 5"),
            ({"kv": 5}, "kv is 5"),
        ],
    )
    def test_that_cannot_be(
        self, engine: FusionEngine, given: dict[str, Any], message: str
    ) -> None:
        for make in (AnswerSettings, *(partial(make, engine=engine) for make in MODELS)):
            with pytest.raises(InvalidInputError, match=message):
                make(**given)

    def test_an_unknown_selector_is_refused_where_settings_are_made(self) -> None:
        with pytest.raises(UnknownSelectorError, match="Known selectors"):
            AnswerSettings(selector="best")

    @pytest.mark.parametrize("make", MODELS)
    def test_whole_numbers_do_for_numbers(self, engine: FusionEngine, make: Any) -> None:
        settings = make(engine=engine, temperature=1, ratio=1, max_tokens=np.int64(3)).settings()
        assert (settings.temperature, settings.ratio, settings.max_tokens) == (1.0, 1.0, 3)
        assert type(settings.temperature) is float
        answer = engine.answer(QUESTION, AnswerSettings(temperature=1, max_tokens=np.int32(2)))
        assert answer.usage.completion_tokens <= 2

    @pytest.mark.parametrize("make", MODELS)
    def test_what_is_no_engine(self, make: Any) -> None:
        with pytest.raises(InvalidInputError, match="engine is 'mine'; give a FusionEngine"):
            make(engine="mine")
        with pytest.raises(InvalidInputError, match="needs an engine or a server's base_url"):
            make()

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Budgets(host=nan),  # type: ignore[arg-type]
            lambda: Budgets(device="1 GB"),  # type: ignore[arg-type]
            lambda: Budgets(disk=-1),
            lambda: Neighbours(count=2.5),  # type: ignore[arg-type]
            lambda: Chunker("many"),  # type: ignore[arg-type]
            lambda: Chunker(10**20),
            lambda: Document("a", "text", metadata=5),  # type: ignore[arg-type]
            lambda: Document("a", passages="text"),  # type: ignore[arg-type]
            lambda: Passage("text", metadata=[1]),  # type: ignore[arg-type]
        ],
    )
    def test_of_other_settings(self, make: Callable[[], Any]) -> None:
        with pytest.raises(InvalidInputError, match=r" is (?!None)"):
            make()


class TestTheEngine:
    @pytest.mark.parametrize(
        "call",
        [
            lambda e: e.register_texts(["text"], scope=None),
            lambda e: e.register_texts("text"),
            lambda e: e.register_texts([1]),
            lambda e: e.register_texts(None),
            lambda e: e.delete(["town-0"], scope=[]),
            lambda e: e.delete(None),
            lambda e: e.delete("town-0"),
            lambda e: e.delete(["town-0", 1]),
            lambda e: e.ingest(None),
            lambda e: e.ingest(5),
            lambda e: e.ingest([], neighbours=3),
            lambda e: e.ingest([], progress=3),
            lambda e: e.ingest([], delete_others="no"),
            lambda e: e.check("many"),
            lambda e: e.check(True),
            lambda e: e.check(estimate=Document("a", "b")),
            lambda e: e.check(estimate=[5]),
            lambda e: e.answer(None),
            lambda e: e.answer(b"text"),
            lambda e: e.answer(QUESTION, {"ratio": 1}),
            lambda e: e.stream(QUESTION, 5),
            lambda e: e.load(QUESTION, 5),
            lambda e: e.encode(None),
            lambda e: e.count_tokens(None),
            lambda e: e.prefetch("key"),
            lambda e: e.prefetch([None]),
            lambda e: e.calibrated({}),
            lambda e: e.store.search(QUESTION, "five"),
            lambda e: e.store.search(QUESTION, True),
        ],
    )
    def test_refuses_what_it_cannot_use(
        self, engine: FusionEngine, call: Callable[[Any], Any]
    ) -> None:
        with pytest.raises(InvalidInputError, match=r"[Gg]ive |are strings|; got "):
            call(engine)
        assert document_ids(engine.store.catalog) == ["town-0", "town-1"]

    @pytest.mark.parametrize(
        "given",
        [
            {"store": None},
            {"model_name_or_path": None},
            {"device": None},
            {"dtype": 32},
            {"budgets": {"host": 1}},
            {"chunk_tokens": 10**20},
            {"chunk_tokens": 48.5},
            {"kv_format": "int2"},
            {"salt": b"secret"},
        ],
    )
    def test_is_not_made_of_anything(
        self, model_dir: Path, tmp_path: Path, given: dict[str, Any]
    ) -> None:
        arguments: dict[str, Any] = {"model_name_or_path": model_dir, "store": tmp_path / "store"}
        with pytest.raises(InvalidInputError, match=r"; (?:it must|give|choose)") as told:
            FusionEngine.from_pretrained(**arguments | given)
        assert "secret" not in str(told.value)
        assert not (tmp_path / "store").exists()

    def test_passes_on_errors_of_functions_that_it_was_given(self, engine: FusionEngine) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            engine.ingest([town(0)], progress=progress)

    def test_takes_texts_one_by_one(self, engine: FusionEngine) -> None:
        engine.register_texts(text for text in ("one", "two"))
        assert engine.delete(name for name in ("nobody",)) == 0


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 5_000, "[1]", "null", "\x00"])
def test_a_calibration_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(InvalidInputError, match="is no calibration"):
        read_calibration(tmp_path / "calibration.json", "signature")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "true", '"x"'])
def test_a_calibration_with_a_number_that_is_none(tmp_path: Path, value: str) -> None:
    path = tmp_path / "calibration.json"
    entry = f'{{"layers": [0], "sensitivity": {value}}}'
    path.write_text(f'{{"format": 1, "calibrations": {{"signature": {entry}}}}}')
    with pytest.raises(InvalidInputError, match="is damaged"):
        read_calibration(path, "signature")


def test_a_corpus_path_that_is_none() -> None:
    nothing: Any = None
    with pytest.raises(InvalidInputError, match="path is None; give a string or a path"):
        Store.open(nothing)


def test_documents_of_other_libraries_are_named(engine: FusionEngine) -> None:
    foreign: Any = LangChainDocument("text", metadata={"price": Decimal(1)})
    with pytest.raises(InvalidInputError, match="Give ingest a list of documents"):
        engine.ingest(foreign)


class TestNumbersOfOtherLibraries:
    @pytest.mark.parametrize("three", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
    def test_are_whole_numbers(self, engine: FusionEngine, three: Any) -> None:
        found = [
            lc.FusionKVRetriever(engine=engine).invoke(QUESTION, k=three),
            lc.FusionKVRetriever(engine=engine).similarity_search_with_score(QUESTION, k=three),
            lc.FusionKVRetriever(engine=engine, search_type="mmr").invoke(QUESTION, k=three),
            lc.FusionKVRetriever(engine=engine, k=three).invoke(QUESTION),
            li.FusionKVRetriever(engine=engine, similarity_top_k=three).retrieve(QUESTION),
            engine.store.search(QUESTION, three),
            engine.store.nearest(engine.store.embed_question(QUESTION), three),
        ]
        assert {len(hits) for hits in found} == {3}
        settings = AnswerSettings(max_tokens=three, seed=three, top_k=three)
        assert {type(settings.max_tokens), type(settings.seed), type(settings.top_k)} == {int}
        assert Calibration(layers=(three,)).layers == (3,)

    @pytest.mark.parametrize("half", [np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
    def test_are_numbers(self, half: Any) -> None:
        settings = AnswerSettings(ratio=half, temperature=half)
        assert (settings.ratio, type(settings.ratio), type(settings.temperature)) == (
            0.5,
            float,
            float,
        )

    @pytest.mark.parametrize("yes", [True, np.bool_(True), np.array(True), torch.tensor(True)])
    def test_booleans_are_none(self, engine: FusionEngine, yes: Any) -> None:
        for refused in (
            lambda: lc.FusionKVRetriever(engine=engine).invoke(QUESTION, k=yes),
            lambda: lc.FusionKVRetriever(engine=engine).similarity_search_with_score(QUESTION, yes),
            lambda: engine.store.nearest(engine.store.embed_question(QUESTION), yes),
            lambda: AnswerSettings(max_tokens=yes),
            lambda: AnswerSettings(ratio=yes),
        ):
            with pytest.raises(InvalidInputError, match=r"give a.* number"):
                refused()

    @pytest.mark.parametrize("k", ["3", 2.0, None, 0, -1])
    def test_a_vectors_neighbours_are_counted(self, engine: FusionEngine, k: Any) -> None:
        with pytest.raises(InvalidInputError, match=r"^k is"):
            engine.store.nearest(engine.store.embed_question(QUESTION), k)


class TestVectors:
    def test_are_lists_and_arrays(self, engine: FusionEngine) -> None:
        corpus = engine.store
        vector = corpus.embed_question(QUESTION)
        expected = [hit.chunk.id for hit in corpus.nearest(vector, 2)]
        for given in (tuple(vector), np.array(vector), torch.tensor(vector), iter(vector)):
            assert [hit.chunk.id for hit in corpus.nearest(given, 2)] == expected

    @pytest.mark.parametrize(
        "make",
        [
            lambda n: None,
            lambda n: "a" * n,
            lambda n: [],
            lambda n: ["1"] * n,
            lambda n: [True] * n,
            lambda n: [None] * n,
            lambda n: [nan] * n,
            lambda n: [inf] * n,
            lambda n: [10**400] * n,
            lambda n: [1e300] * n,
            lambda n: np.array(1.0),
            lambda n: torch.tensor(1.0),
            lambda n: np.zeros((2, n)),
            lambda n: nested(),
        ],
    )
    def test_are_of_finite_numbers(self, engine: FusionEngine, make: Callable[[int], Any]) -> None:
        given = make(len(engine.store.embed_question(QUESTION)))
        with pytest.raises(InvalidInputError, match="is no list of finite numbers"):
            engine.store.nearest(given, 2)


ARRAYS = [np.array(["a", "b"]), np.array("a"), np.array([]), torch.tensor(1), torch.tensor([1, 2])]


class TestArrays:
    @pytest.mark.parametrize("given", ARRAYS)
    def test_are_no_prompt(self, engine: FusionEngine, given: Any) -> None:
        for ask in (engine.answer, engine.count_tokens, li.FusionRAGLLM(engine=engine).complete):
            with pytest.raises(InvalidInputError, match=r"[Pp]rompt|message"):
                ask(given)
        for message in ({"role": given, "content": "a"}, {"role": "user", "content": given}):
            with pytest.raises(InvalidInputError, match="with the strings"):
                engine.answer([message])  # type: ignore[list-item]

    @pytest.mark.parametrize("given", [*ARRAYS, nested(), {"a": nested()}])
    @pytest.mark.parametrize("model", MODELS[:2])
    def test_are_no_stop_strings_in_langchain(
        self, engine: FusionEngine, model: Any, given: Any
    ) -> None:
        llm = model(engine=engine, max_tokens=1)
        for call in (
            lambda: llm.invoke(QUESTION, stop=given),
            lambda: llm.batch([QUESTION], stop=given),
            lambda: list(llm.stream(QUESTION, stop=given)),
            lambda: asyncio.run(llm.ainvoke(QUESTION, stop=given)),
        ):
            with pytest.raises(InvalidInputError, match=r"stop is .*give a list of strings"):
                call()

    @pytest.mark.parametrize("given", [np.array("a"), torch.tensor(1), nested(), [nested()]])
    def test_are_nothing_to_iterate_over(self, engine: FusionEngine, given: Any) -> None:
        calls: list[Callable[[Any], Any]] = [
            engine.delete,
            engine.offer,
            engine.prefetch,
            engine.ingest,
            partial(lc.FusionKVRetriever.from_documents, engine=engine),
            partial(li.FusionKVRetriever.from_nodes, engine=engine),
            lambda given: engine.check(estimate=given),
            lambda given: list(read_documents(given)),
        ]
        for call in calls:
            with pytest.raises(InvalidInputError):
                call(given)

    @pytest.mark.parametrize("given", [b"a", None, 5, np.array("a")])
    def test_are_no_question(self, engine: FusionEngine, given: Any) -> None:
        retriever = li.FusionKVRetriever(engine=engine)
        with pytest.raises(InvalidInputError, match="question is"):
            retriever.retrieve(given)
        with pytest.raises(InvalidInputError, match="question is"):
            asyncio.run(retriever.aretrieve(given))

    @pytest.mark.parametrize("given", [5, np.array(["a", "b"]), torch.tensor([1, 2])])
    def test_are_no_object_of_a_framework(self, engine: FusionEngine, given: Any) -> None:
        with pytest.raises(InvalidInputError, match=r"callback_manager is .*CallbackManager"):
            li.FusionKVRetriever(engine=engine, callback_manager=given)

    def test_metadata_nested_too_deep(self) -> None:
        with pytest.raises(InvalidInputError, match="nested too deep"):
            Document("a", "b", metadata={"a": nested()})


class TestCallsOfTools:
    @pytest.mark.parametrize(
        "calls", [5, "a", b"a", {"a": 1}, [None], ["a"], [[]], [np.array([1])], np.array([1, 2])]
    )
    def test_are_a_list_of_dictionaries(self, engine: FusionEngine, calls: Any) -> None:
        said: Any = {"role": "assistant", "content": "a", "tool_calls": calls}
        with pytest.raises(
            InvalidInputError, match=r"tool_calls are .*give a list of dictionaries"
        ):
            engine.answer([said, {"role": "user", "content": QUESTION}])

    @pytest.mark.parametrize("field", ["name", "tool_call_id"])
    def test_are_named_by_strings(self, engine: FusionEngine, field: str) -> None:
        message: Any = {"role": "tool", "content": "a", field: 5}
        with pytest.raises(InvalidInputError, match=f"{field} of a message is 5; give a string"):
            engine.answer([message])

    @pytest.mark.parametrize("name", ["x", "content"])
    def test_what_is_nested_too_deep(self, engine: FusionEngine, name: str) -> None:
        message: Any = {"role": "user", "content": QUESTION, name: nested()}
        with pytest.raises(InvalidInputError, match=r"nested too deep|with the strings"):
            engine.answer([message])


HALF = "half \ud83d"


class TestHalfASurrogatePair:
    """No text in UTF-8 can hold one: refused where it is given, by the name of what holds it."""

    @pytest.mark.parametrize(
        ("call", "name"),
        [
            (lambda e: e.encode(HALF), "text"),
            (lambda e: e.answer(HALF), "The prompt"),
            (lambda e: e.register_texts([HALF]), "texts"),
            (lambda e: e.register_texts(["a"], scope=HALF), "scope"),
            (lambda e: e.delete([HALF]), "document_ids"),
            (lambda e: e.delete(["a"], scope=HALF), "scope"),
            (lambda e: e.store.search(HALF), "The question"),
            (lambda e: e.store.search("a", scopes=[HALF]), "scopes"),
            (lambda e: e.store.handle_of(HALF, "a"), "text"),
            (lambda e: AnswerSettings(stop=(HALF,)), "stop"),
            (lambda e: AnswerSettings(scopes=("a", HALF)), "scopes"),
            (lambda e: Document("a", HALF), "The text of document 'a'"),
            (lambda e: Document("a", title=HALF), "The title of document 'a'"),
            (lambda e: Document("a", scope=HALF), "The scope of document 'a'"),
            (lambda e: Document(HALF, "a"), r"The id 'half \\ud83d' of a document"),
            (lambda e: Document("a", passages=(Passage(HALF),)), "A passage of document 'a'"),
            (lambda e: lc.FusionKVRetriever(engine=e).invoke(HALF), "The question"),
            (lambda e: lc.FusionKVRetriever(engine=e, scopes=[HALF]), "scopes"),
            (lambda e: lc.FusionRAGLLM(engine=e, stop=[HALF]), "stop"),
            (lambda e: lc.FusionRAGLLM(engine=e).invoke("a", stop=[HALF]), "stop"),
            (lambda e: lc.ChatFusionRAG(engine=e).get_num_tokens(HALF), "text"),
            (lambda e: li.FusionKVRetriever(engine=e).retrieve(HALF), "The question"),
            (lambda e: li.FusionRAGLLM(engine=e).complete("a", stop=[HALF]), "stop"),
            (lambda e: FusionEngine.open(e.model, e.store.path, salt=HALF), "salt"),
        ],
    )
    def test_is_refused(
        self, engine: FusionEngine, call: Callable[[FusionEngine], Any], name: str
    ) -> None:
        with pytest.raises(InvalidInputError, match=f"^{name} holds half a surrogate pair at char"):
            call(engine)
