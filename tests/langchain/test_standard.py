"""LangChain's own conformance suites."""

from __future__ import annotations

from inspect import getmembers, iscoroutinefunction
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever

for suite in (ChatModelIntegrationTests, RetrieversIntegrationTests):
    for _, method in getmembers(suite, iscoroutinefunction):
        pytest.mark.asyncio(method)  # the suites leave it to the project what runs their coroutines


class WithEngine:
    """The suites ask for constructor arguments by property, which can't take a fixture."""

    engine: FusionEngine

    @pytest.fixture(autouse=True)
    def _give_engine(self, engine: FusionEngine) -> None:
        self.engine = engine


class WithChatModel(WithEngine):
    """What the suites may expect of the chat model; images and the like they don't by default."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatFusionRAG

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine, "max_tokens": 12}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return False  # an engine has one model


class TestChatModelUnits(WithChatModel, ChatModelUnitTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine}  # the suite gives max_tokens itself


class TestChatModelAnswers(WithChatModel, ChatModelIntegrationTests):
    pass


class TestFusionKVRetriever(WithEngine, RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return FusionKVRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"engine": self.engine}

    @property
    def retriever_query_example(self) -> str:
        return "Where is house 15 of town number 2?"
