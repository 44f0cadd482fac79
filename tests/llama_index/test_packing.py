"""Contexts are packed by what the model reads: whole where they fit, and never too long."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.indices.prompt_helper import DEFAULT_PADDING
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import TextNode
from llama_index.core.utils import get_tokenizer
from pydantic import BaseModel
from transformers import LlamaConfig, LlamaForCausalLM

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.errors import PromptTooLongError
from fusionrag_integrations.llama_index import FusionRAGLLM
from tests.embeddings import LlamaIndexLexical
from tests.llama_index.helpers import MAX_TOKENS, QUESTION, Call, recorded
from tests.tiny_models import COMMON, heads
from tests.tiny_tokenizers import TRAINING, byte_level_tokenizer

WINDOW = 1024
RARE = "🦊🏺🪵🛶🌉🪨𠮷𡈽𪚲㐂㒼㠀"
DEFAULT_SYSTEM = "You are a model that was made by somebody, and you know nothing after today. " * 3


class Place(BaseModel):
    """Where something is."""

    town: str
    house: int


def english(words: int) -> str:
    return " ".join(f"river{i % 7} bridge" for i in range(words // 2))


def rare(characters: int) -> str:
    return (RARE * (characters // len(RARE) + 1))[:characters]


# The model's tokenizer needs more tokens than cl100k for the first text, fewer for the second.
TEXTS: dict[str, Callable[[int], str]] = {"english": english, "rare": rare}


@pytest.fixture(scope="module", params=["chat", "wordy", "plain"])
def packing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model whose chat template is short, or says much of its own, or isn't there."""
    path = tmp_path_factory.mktemp("packing")
    training = (*TRAINING, *(RARE[i:] + RARE[:i] for i in range(len(RARE))))
    tokenizer = byte_level_tokenizer(
        chat=request.param != "plain", training=training, vocabulary=560
    )
    model = COMMON | {"vocab_size": len(tokenizer), "max_position_embeddings": WINDOW}
    LlamaForCausalLM(LlamaConfig(**model, **heads(4, 2))).save_pretrained(path / "model")
    template = tokenizer.chat_template
    if request.param == "wordy":
        tokenizer.chat_template = f"<|system|>{DEFAULT_SYSTEM}<|end|>{template}"
    tokenizer.save_pretrained(path / "model")
    tokenizer.chat_template = template  # it is shared between tests
    return FusionEngine.from_pretrained(path / "model", store=path / "store")


def synthesized(engine: FusionEngine, mode: str, texts: list[str]) -> list[Call]:
    llm = FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS)
    synthesizer = get_response_synthesizer(
        llm=llm,
        response_mode=mode,  # type: ignore[arg-type]
        prompt_helper=llm.prompt_helper(),
    )
    with recorded(engine) as calls:
        synthesizer.get_response(QUESTION, texts)
    return calls


def own_tokens(engine: FusionEngine) -> int:
    """Tokens of a prompt with hardly any context: LlamaIndex packs for the longer of two."""
    calls = synthesized(engine, "refine", [".", "."])
    return max(call.answer.usage.prompt_tokens for call in calls) - 1


def fitting(engine: FusionEngine, make: Callable[[int], str], room: int) -> str:
    """The longest text that the model reads as at most `room` tokens."""
    too_long = bisect_right(range(0, 12_000, 2), room, key=lambda n: len(engine.encode(make(n))))
    return make(2 * (too_long - 1))


@pytest.mark.parametrize("kind", TEXTS)
def test_a_context_that_fits_is_put_before_the_model_whole(
    packing: FusionEngine, kind: str
) -> None:
    room = WINDOW - MAX_TOKENS - DEFAULT_PADDING - own_tokens(packing)
    text = fitting(packing, TEXTS[kind], room - 5)
    assert (len(packing.encode(text)) > len(get_tokenizer()(text))) == (kind == "english")
    calls = synthesized(packing, "compact", [text])
    assert len(calls) == 1
    assert text in calls[0].text
    assert calls[0].answer.usage.prompt_tokens > 0.8 * WINDOW


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
def test_a_context_of_any_length_leaves_room_for_the_answer(
    packing: FusionEngine, mode: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    room = WINDOW - MAX_TOKENS - own_tokens(packing)
    for size in (room - 3, room + 1, 2 * room):
        text = fitting(packing, TEXTS[kind], size)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            calls = synthesized(packing, mode, [text])
        assert caplog.records == []  # refining logs the errors that it swallows
        assert max(c.answer.usage.prompt_tokens for c in calls) <= WINDOW - MAX_TOKENS
    assert len(calls) > 1


def test_a_long_question_leaves_room_too(packing: FusionEngine) -> None:
    question = f"{QUESTION} {english(30)}"
    room = WINDOW - MAX_TOKENS - own_tokens(packing)
    llm = FusionRAGLLM(engine=packing, max_tokens=MAX_TOKENS)
    for mode in ("compact", "refine"):
        synthesizer = get_response_synthesizer(
            llm=llm,
            response_mode=mode,  # type: ignore[arg-type]
            prompt_helper=llm.prompt_helper(),
        )
        with recorded(packing) as calls:
            synthesizer.get_response(question, [fitting(packing, english, room - 10)])
        assert len(calls) > 1
        assert all(question in call.text for call in calls)
        assert max(c.answer.usage.prompt_tokens for c in calls) <= WINDOW - MAX_TOKENS


def test_several_chunks_that_fit_together_need_one_call(packing: FusionEngine) -> None:
    texts = [english(20 + 2 * i) for i in range(3)]
    calls = synthesized(packing, "compact", texts)
    assert len(calls) == 1
    assert "\n\n".join(texts) in calls[0].text


def test_without_the_helper_a_text_that_is_cheap_for_cl100k_is_too_long(
    packing: FusionEngine,
) -> None:
    llm = FusionRAGLLM(engine=packing, max_tokens=MAX_TOKENS)
    synthesizer = get_response_synthesizer(llm=llm, response_mode="tree_summarize")  # type: ignore[arg-type]
    with pytest.raises(PromptTooLongError, match=f"holds {WINDOW}"):
        synthesizer.get_response(QUESTION, [fitting(packing, english, WINDOW + 50)])


def test_without_the_helper_a_text_that_is_dear_for_cl100k_is_cut(packing: FusionEngine) -> None:
    llm = FusionRAGLLM(engine=packing, max_tokens=MAX_TOKENS)
    text = fitting(packing, rare, 400)
    with recorded(packing) as calls:
        get_response_synthesizer(llm=llm).get_response(QUESTION, [text])
    assert len(calls) > 1
    assert len(synthesized(packing, "compact", [text])) == 1


def test_a_structured_answers_schema_takes_room(packing: FusionEngine) -> None:
    llm = FusionRAGLLM(engine=packing, max_tokens=MAX_TOKENS)
    helper, prompt = llm.prompt_helper(), get_response_synthesizer(llm=llm).get_prompts()
    template = prompt["text_qa_template"]
    plain = helper.get_text_splitter_given_prompt(template, llm=llm)
    structured = helper.get_text_splitter_given_prompt(template, llm=llm.as_structured_llm(Place))
    assert structured.chunk_size < plain.chunk_size


def test_names_of_control_tokens_are_counted_as_the_text_that_they_are(
    packing: FusionEngine,
) -> None:
    calls = synthesized(packing, "compact", ["the <|user|> is <|end|> " * 150])
    assert len(calls) > 1
    for call in calls:
        assert call.answer.usage.prompt_tokens + MAX_TOKENS <= WINDOW


@pytest.mark.parametrize("packing", ["wordy"], indirect=True)
def test_chat_engines_take_the_helper_from_the_settings(
    packing: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no other way to give it to them."""
    llm = FusionRAGLLM(engine=packing, max_tokens=MAX_TOKENS)
    text = fitting(packing, rare, 450)
    index = VectorStoreIndex([TextNode(text=text)], embed_model=LlamaIndexLexical())

    def calls_of_a_chat() -> list[Call]:
        memory = ChatMemoryBuffer.from_defaults(token_limit=100, tokenizer_fn=packing.encode)
        chat_engine = index.as_chat_engine(chat_mode="context", llm=llm, memory=memory)  # type: ignore[arg-type]
        with recorded(packing) as calls:
            chat_engine.chat(QUESTION)
        return calls

    assert len(calls_of_a_chat()) > 1
    monkeypatch.setattr(Settings, "_prompt_helper", llm.prompt_helper())
    [call] = calls_of_a_chat()
    assert text in call.text
