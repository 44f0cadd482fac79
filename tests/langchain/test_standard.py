"""LangChain's own conformance suites, on the bundled model, with a template that words tools.

LangChain has no suite for string models; `FusionRAGLLM` is held to the same in the other tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from inspect import getmembers, iscoroutinefunction
from typing import Any

import pytest
import torch
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from transformers import AutoTokenizer

from fusionrag_integrations import Document, FusionEngine
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever
from fusionrag_integrations.serving.pipeline import Pipeline
from fusionrag_integrations.serving.request import Request
from tests.langchain.chains import WORDS, join
from tests.langchain.templates import WITH_TOOLS
from tests.small_demo import few_documents, few_questions

for suite in (ChatModelIntegrationTests, RetrieversIntegrationTests):
    for _, method in getmembers(suite, iscoroutinefunction):
        pytest.mark.asyncio(method)  # the suites leave it to the project what runs their coroutines

no_call = pytest.mark.xfail(
    raises=(AssertionError, TypeError),
    strict=True,
    reason="The bundled model hasn't learnt to call tools, and nothing forces a model to.",
)
one_model = pytest.mark.xfail(
    raises=InvalidInputError,
    strict=True,
    reason="An engine has one model and its store's KV is that model's: a call can't take another.",
)
CALLING = (
    "test_agent_loop",
    "test_bind_runnables_as_tools",
    "test_structured_output",
    "test_structured_output_async",
    "test_structured_output_optional_param",
    "test_structured_output_pydantic_2_v1",
    "test_tool_calling",
    "test_tool_calling_async",
    "test_tool_calling_with_no_arguments",
    "test_tool_choice",
    "test_unicode_tool_call_integration",
)
DEVIATIONS = dict.fromkeys(CALLING, no_call) | dict.fromkeys(
    (
        "test_ainvoke_with_model_override",
        "test_astream_with_model_override",
        "test_invoke_with_model_override",
        "test_stream_with_model_override",
    ),
    one_model,
)


@pytest.fixture(scope="module")
def demo_engine(tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """The bundled model over a few documents of the demo."""
    model = CausalModel.load(MODEL_DIR)
    model.tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, chat_template=WITH_TOOLS)
    engine = FusionEngine.open(model, tmp_path_factory.mktemp("standard") / "store")
    engine.ingest(Document(**row) for row in few_documents(few_questions(1), others=2))
    return engine


class WithEngine:
    """The suites ask for constructor arguments by property, which can't take a fixture."""

    engine: FusionEngine

    @pytest.fixture(autouse=True)
    def _give_engine(self, demo_engine: FusionEngine) -> None:
        self.engine = demo_engine


class WithChatModel(WithEngine):
    """What the suites may expect of the chat model; images and the like they don't by default."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatFusionRAG

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine, "max_tokens": 12}

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "another-model"

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        question = few_questions(1)[0]["question"]
        context = join(FusionKVRetriever(engine=self.engine).invoke(question))
        chat = ChatFusionRAG(engine=self.engine, max_tokens=2)
        words = WORDS.format(context=context, question=question)
        message: Any = sum_of(chat.stream(words)) if stream else chat.invoke(words)
        assert message.usage_metadata["input_token_details"]["cache_read"] > 0
        return message


def sum_of(chunks: Iterator[Any]) -> Any:
    first = next(chunks)
    return sum(chunks, start=first)


class TestChatModelUnits(WithChatModel, ChatModelUnitTests):
    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """Without those of a service: a local model has no retries, and refuses to be told any."""
        of_services = ("timeout", "max_retries", "api_key")
        given = super().standard_chat_model_params
        return {name: value for name, value in given.items() if name not in of_services}

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine}  # the suite gives max_tokens itself

    @pytest.mark.xfail(
        raises=InvalidInputError,
        strict=True,
        reason="It has no `streaming`: `stream` streams, and what it doesn't take is refused.",
    )
    def test_init_streaming(self) -> None:
        super().test_init_streaming()


class TestChatModelAnswers(WithChatModel, ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _mark_deviations(self, request: pytest.FixtureRequest) -> None:
        if mark := DEVIATIONS.get(request.function.__name__):
            request.applymarker(mark)


class TestToolCalls(WithChatModel, ChatModelIntegrationTests):
    """What the bundled model can't say is put into its mouth; all around it is as ever."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine, "max_tokens": 200}  # room for a call

    @pytest.fixture(autouse=True)
    def _call_the_first_tool(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decode = Pipeline.decode

        def call(pipeline: Pipeline, request: Request, logits: torch.Tensor) -> None:
            if tools := request.settings.tools:
                function = tools[0]["function"]
                arguments = arguments_for(function["parameters"])
                words = json.dumps(
                    {"name": function["name"], "arguments": arguments}, ensure_ascii=False
                )
                ids = self.engine.encode(f"<tool_call>{words}</tool_call>")
                told = [*ids, self.engine.model.tokenizer.eos_token_id]
                token_id = told[len(request.output.token_ids)]
                logits = torch.full_like(logits, -torch.inf).index_fill(
                    0, torch.tensor(token_id), 0
                )
            decode(pipeline, request, logits)

        monkeypatch.setattr(Pipeline, "decode", call)


for name in dir(ChatModelIntegrationTests):
    if name.startswith("test_") and name not in CALLING:  # they ran above
        setattr(TestToolCalls, name, None)


def arguments_for(schema: dict[str, Any]) -> dict[str, Any]:
    values = {"integer": 3, "string": "你好, こんにちは"}
    return {
        name: values[parameter["type"]]
        for name, parameter in schema["properties"].items()
        if name in schema.get("required", ())
    }


class TestFusionKVRetriever(WithEngine, RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return FusionKVRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"engine": self.engine}

    @property
    def retriever_query_example(self) -> str:
        question: str = few_questions(1)[0]["question"]
        return question


def test_each_deviation_is_a_test_of_the_suite() -> None:
    assert [name for name in DEVIATIONS if not hasattr(ChatModelIntegrationTests, name)] == []
