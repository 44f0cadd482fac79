"""Settings that can't be are refused where they are made, by their names."""

from __future__ import annotations

from typing import Any

import pytest

from fusionrag_integrations import AnswerSettings, KVHandle
from fusionrag_integrations.errors import InvalidInputError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kv": "all"}, r"Unknown kv 'all'; choose one of .*fused"),
        ({"ratio": 1.01}, r"ratio is 1.01; it must lie in \[0, 1\]"),
        ({"max_tokens": 0}, r"max_tokens is 0; it must be at least 1"),
        ({"temperature": -0.1}, r"temperature is -0.1; it must lie in \[1e-06, 1e\+06\]"),
        ({"top_p": 0.0}, r"top_p is 0.0; it must lie in \(0, 1\]"),
        ({"top_k": -1}, r"top_k is -1; use 0 for no limit"),
        ({"temperature": 1e30}, r"temperature is 1e\+30; it must lie in"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0.0; it must lie in \[1e-06"),
        ({"repetition_penalty": 1e-40}, r"repetition_penalty is 1e-40; it must lie in"),
        ({"max_tokens": 10**5000}, r"max_tokens is a int that can't be shown; it must fit 64"),
        ({"handles": ["x"]}, r"handles is \['x'\]; give a tuple of KVHandle"),
        ({"scopes": ["x"]}, r"scopes is \['x'\]; give a tuple of strings, or None"),
        ({"stop": ("",)}, r"stop is \('',\); give a tuple of non-empty strings"),
    ],
)
def test_values_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        AnswerSettings(**given)
    with pytest.raises(InvalidInputError, match=message):
        AnswerSettings().changed(given)


def test_names_that_are_no_settings() -> None:
    with pytest.raises(InvalidInputError, match=r"takes no 'heat'\. Accepted are .*top_k"):
        AnswerSettings().changed({"heat": 1.0})


def test_documents_without_a_handle_are_passed_over() -> None:
    handle = KVHandle("a", "b", "")
    given: Any = (None, handle, None)
    assert AnswerSettings(handles=given).handles == (handle,)
