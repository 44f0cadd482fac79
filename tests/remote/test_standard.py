"""LangChain's own conformance suites, over a server."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import getmembers, iscoroutinefunction
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever
from fusionrag_integrations.server import create_app
from tests.langchain.test_standard import DEVIATIONS
from tests.remote.loopback import LOOPBACK, served

pytestmark = LOOPBACK

for suite in (ChatModelIntegrationTests, RetrieversIntegrationTests):
    for _, method in getmembers(suite, iscoroutinefunction):
        pytest.mark.asyncio(method)


class OverAServer:
    """The suites ask for constructor arguments by property, which can't take a fixture."""

    base_url: str

    @pytest.fixture(autouse=True)
    def _serve(self, engine: FusionEngine, socket_enabled: None) -> Iterator[None]:
        with served(create_app(engine)) as self.base_url:
            yield


class TestChatModel(OverAServer, ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatFusionRAG

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.base_url, "max_tokens": 12}

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "another-model"

    @pytest.fixture(autouse=True)
    def _mark_deviations(self, request: pytest.FixtureRequest) -> None:
        if mark := DEVIATIONS.get(request.function.__name__):
            request.applymarker(mark)


class TestRetriever(OverAServer, RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return FusionKVRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"base_url": self.base_url}

    @property
    def retriever_query_example(self) -> str:
        return "Where is the river of town number 2?"
