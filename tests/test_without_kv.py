"""Engines that keep no KV: any model answers by full attention, through the same components."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.llms import ChatMessage

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.cli import main
from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreMismatchError,
    UnsupportedModelError,
)
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever, FusionRAGLLM
from fusionrag_integrations.llama_index import FusionRAGLLM as LlamaIndexLLM
from fusionrag_integrations.store.kv.local import LocalKVFiles
from tests.conftest import town
from tests.server.conftest import running
from tests.tiny_models import WITHOUT_KV, build, build_without_kv
from tests.tiny_tokenizers import byte_level_tokenizer

TOKENS = 10
GREEDY = AnswerSettings(max_tokens=TOKENS)
TOKENIZER = byte_level_tokenizer(chat=True)


def prompt(number: int) -> str:
    return f"{town(number).text}\n\nQuestion: Where is the fox of house {number}?\nAnswer:"


def generated(hf: Any, text: str) -> list[int]:
    """What the model generates by itself behind the text in a user's message."""
    ids = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    said = hf.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False
    )
    return [int(token) for token in said[0, ids.shape[1] :]]


def in_words(token_ids: list[int]) -> str:
    return TOKENIZER.decode(token_ids, skip_special_tokens=True)


def records(store: Path) -> list[Path]:
    return [path for path in (store / "kv").rglob("*") if path.is_file()]


@pytest.fixture(params=WITHOUT_KV)
def hf(request: pytest.FixtureRequest) -> Any:
    return build_without_kv(request.param, TOKENIZER)


def test_a_model_whose_kv_cannot_be_reused_answers_all_the_same(hf: Any, tmp_path: Path) -> None:
    before = str(hf.config._attn_implementation)
    with pytest.raises(UnsupportedModelError, match="Give kv='none' to use it all the same"):
        FusionEngine.from_model(hf, TOKENIZER, store=tmp_path / "store")
    expected = [generated(hf, prompt(number)) for number in range(3)]
    with FusionEngine.from_model(hf, TOKENIZER, store=tmp_path / "store", kv="none") as engine:
        report = engine.ingest([town(number) for number in range(3)])
        assert (report.isolated_computed, report.fused_computed) == (0, 0)
        answers = engine.answer_all([prompt(number) for number in range(3)], GREEDY)
        assert [list(answer.token_ids) for answer in answers] == expected
        assert answers[0].full_reason == "its engine keeps no KV (kv='none')."
        assert answers[0].usage.fresh_tokens == answers[0].usage.prompt_tokens
        words, asked = in_words(expected[0]), prompt(0)
        assert FusionRAGLLM(engine=engine, max_tokens=TOKENS).invoke(asked) == words
        assert ChatFusionRAG(engine=engine, max_tokens=TOKENS).invoke(asked).content == words
        theirs = LlamaIndexLLM(engine=engine, max_tokens=TOKENS)
        assert theirs.complete(asked).text == words
        assert theirs.chat([ChatMessage(role="user", content=asked)]).message.content == words
    assert records(tmp_path / "store") == []
    assert str(hf.config._attn_implementation) == before


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FusionEngine]:
    """Towns 0 and 1, and town 2 of another scope, with a model that has attention and a state."""
    hf = build_without_kv("lfm2", TOKENIZER)
    store = tmp_path_factory.mktemp("none") / "store"
    with FusionEngine.from_model(hf, TOKENIZER, store=store, kv="none", chunk_tokens=48) as engine:
        engine.ingest([town(0), town(1), replace(town(2), scope="board")])
        yield engine


def test_answers_stream_stop_and_sample_as_ever(engine: FusionEngine) -> None:
    text = in_words(generated(engine.model.hf, prompt(0)))
    assert "".join(engine.stream(prompt(0), GREEDY)) == text
    assert engine.answer(prompt(0), replace(GREEDY, stop=(text[5:7],))).text == text[:5]
    sampled = replace(GREEDY, temperature=5.0, seed=3)
    assert engine.answer(prompt(0), sampled).text == engine.answer(prompt(0), sampled).text != text


def test_a_pass_that_fails_for_one_changes_no_answer(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache may be half written by then, and can't take a token back."""
    hf, calls = engine.model.hf, []
    alone = [engine.answer(prompt(number), GREEDY).token_ids for number in range(2)]
    forward = type(hf).forward

    def failing(model: Any, *args: Any, **given: Any) -> Any:
        output = forward(model, *args, **given)
        calls.append(len(calls))
        if len(calls) in (8, 14):  # of the second request, then of the first, while both decode
            raise RuntimeError("out of something")
        return output

    monkeypatch.setattr(type(hf), "forward", failing)
    answers = engine.answer_all([prompt(0), prompt(1)], GREEDY)
    assert [answer.token_ids for answer in answers] == alone
    assert len(calls) > 2 * TOKENS


def test_documents_are_found_and_deleted_by_scope(engine: FusionEngine) -> None:
    found = FusionKVRetriever(engine=engine, k=3, scopes=["board"]).invoke("house of town number 2")
    assert {one.metadata["document_id"] for one in found} == {"town-2"}
    assert isinstance(found[0], LangChainDocument)
    engine.ingest([replace(town(3), scope="board")])
    assert engine.delete(["town-3"], scope="board") == 1
    assert records(engine.store.path) == []


def test_the_store_remembers_that_it_keeps_none(tmp_path: Path) -> None:
    hf, store = build_without_kv("gpt2", TOKENIZER), tmp_path / "store"
    FusionEngine.from_model(hf, TOKENIZER, store=store, kv="none").close()
    with FusionEngine.from_model(hf, TOKENIZER, store=store) as engine:
        assert list(engine.answer(prompt(0), GREEDY).token_ids) == generated(hf, prompt(0))
    with FusionEngine.open(PlainModel.of(hf, TOKENIZER), store) as engine:
        assert not engine.keeps_kv
    with pytest.raises(StoreMismatchError, match=r"was made without KV .* leave kv out"):
        FusionEngine.from_model(hf, TOKENIZER, store=store, kv="fused")


def test_a_store_with_kv_stays_one(model_dir: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    FusionEngine.from_pretrained(model_dir, store=store).close()
    with pytest.raises(StoreMismatchError, match=r"was made with KV, .* AnswerSettings\(kv='none'"):
        FusionEngine.from_pretrained(model_dir, store=store, kv="none")
    with pytest.raises(StoreMismatchError, match="was made with KV"):
        FusionEngine.open(PlainModel.load(model_dir), store)


def test_a_supported_model_may_do_without(model_dir: Path, tmp_path: Path) -> None:
    with FusionEngine.from_pretrained(model_dir, store=tmp_path / "kv") as engine:
        engine.ingest([town(0)])
        expected = engine.answer(prompt(0), replace(GREEDY, kv="none")).token_ids
    with FusionEngine.from_pretrained(model_dir, store=tmp_path / "none", kv="none") as engine:
        engine.ingest([town(0)])
        assert engine.answer(prompt(0), GREEDY).token_ids == expected
        assert list(expected) == generated(engine.model.hf, prompt(0))
        assert engine.model.hf.config._attn_implementation != "fusionrag"
    with FusionEngine.open(CausalModel.load(model_dir), tmp_path / "none") as engine:
        assert engine.answer(prompt(0), GREEDY).token_ids == expected
    assert records(tmp_path / "none") == []


def test_a_model_that_the_trial_refuses(tmp_path: Path) -> None:
    """Its layers mix rows outside attention, as a convolution over tokens does."""
    hf = build("qwen3")
    hf.resize_token_embeddings(len(TOKENIZER))
    hf.model.layers[1].mlp.register_forward_hook(lambda mlp, args, out: out + out.cumsum(1))
    with pytest.raises(UnsupportedModelError, match=r"rows in any order .* kv='none'"):
        FusionEngine.from_model(hf, TOKENIZER, store=tmp_path / "store")
    with FusionEngine.from_model(hf, TOKENIZER, store=tmp_path / "store", kv="none") as engine:
        assert list(engine.answer(prompt(0), GREEDY).token_ids) == generated(hf, prompt(0))


@pytest.mark.parametrize("kv", ["fused", "isolated"])
def test_kv_that_is_asked_for_by_name_is_not_passed_over(engine: FusionEngine, kv: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"kv is '{kv}', and the store at .* keeps no KV"):
        engine.answer(prompt(0), replace(GREEDY, kv=kv))
    with pytest.raises(InvalidInputError, match="keeps no KV"):
        FusionRAGLLM(engine=engine, kv=kv).invoke("Where?")


def test_what_needs_kv_says_that_there_is_none(engine: FusionEngine) -> None:
    for ask in (engine.check, lambda: engine.load(prompt(0)), lambda: engine.executor):
        with pytest.raises(InvalidInputError, match=r"keeps no KV \(kv='none'\): .* nothing to ch"):
            ask()


def test_nothing_is_read_ahead(engine: FusionEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(LocalKVFiles, "open", lambda files, key: opened.append(key))
    engine.prefetch(hit.handle for hit in engine.store.search("the fox", 2))
    engine.answer(prompt(0), GREEDY)
    assert opened == []


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_commands(tmp_path: Path) -> None:
    model, store, text = tmp_path / "mamba", tmp_path / "store", tmp_path / "town.txt"
    hf = build_without_kv("mamba2", TOKENIZER)
    hf.save_pretrained(model)
    TOKENIZER.save_pretrained(model)
    text.write_text(town(0).text)
    index = ["index", text, "--store", store, "--model", model]
    assert "Give kv='none'" in run(*index).stderr
    assert run(*index, "--kv", "none").exit_code == 0
    asked = run("ask", "Where is the fox?", "--store", store, "--max-tokens", 4, "--json")
    answer = json.loads(asked.stdout)
    assert answer["full_reason"] == "its engine keeps no KV (kv='none')."
    assert json.loads(run("inspect", "--store", store, "--json").stdout)["kv"] == "none"
    assert run("verify", "--store", store).exit_code == 0
    refused = run("check", "--store", store)
    assert (refused.exit_code, "keeps no KV" in refused.stderr) == (1, True)


def test_a_server_and_components_over_it(engine: FusionEngine, socket_enabled: None) -> None:
    with running(engine) as server:
        with ChatFusionRAG(base_url=server.url, max_tokens=TOKENS) as chat:
            said = chat.invoke(prompt(0)).content
        found = FusionKVRetriever(base_url=server.url, k=1).invoke("house of town number 1")
    assert said == in_words(generated(engine.model.hf, prompt(0)))
    assert found[0].metadata["document_id"] == "town-1"


def test_components_of_hugging_face_are_taken_over(tmp_path: Path) -> None:
    from langchain_huggingface import HuggingFacePipeline
    from llama_index.llms.huggingface import HuggingFaceLLM
    from transformers import pipeline

    hf = build_without_kv("granitemoehybrid", TOKENIZER)
    made = pipeline(
        "text-generation", hf, tokenizer=TOKENIZER, max_new_tokens=TOKENS, do_sample=False
    )
    piped = HuggingFacePipeline(pipeline=made)
    held = HuggingFaceLLM(
        model=hf,
        tokenizer=TOKENIZER,
        max_new_tokens=TOKENS,
        generate_kwargs={"do_sample": False},
    )
    expected = piped.invoke(prompt(0)).removeprefix(prompt(0)), held.complete(prompt(0)).text
    one = FusionRAGLLM.from_huggingface(piped, store=tmp_path / "one", kv="none")
    other = LlamaIndexLLM.from_huggingface(held, store=tmp_path / "other", kv="none")
    with one.engine, other.engine:
        assert (one.invoke(prompt(0)), other.complete(prompt(0)).text) == expected
