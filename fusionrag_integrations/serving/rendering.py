"""Prompt -> the text that the model reads, in which no chunk can spell a control token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusionrag_integrations.prompt import (
    Places,
    RenderedPrompt,
    is_formatted,
    render,
    spells_control_tokens,
)
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.known_chunks import KnownChunks
from fusionrag_integrations.serving.settings import AnswerSettings


def render_prompt(
    tokenizer: Any, prompt: Prompt, settings: AnswerSettings, chunks: KnownChunks
) -> RenderedPrompt:
    """Render a prompt; where it goes through no template, chunks in it are quoted.

    Raises as `render` does.
    """
    raw, places = settings.raw, None
    if raw is None and isinstance(prompt, str) and is_formatted(tokenizer, prompt):
        # The text outside chunks decides, since a chunk may spell control tokens.
        places = chunks.places(prompt, settings)
        raw = is_formatted(tokenizer, _without(prompt, places))
    rendered = render(tokenizer, prompt, settings.tools, raw=bool(raw))
    if rendered.plain and spells_control_tokens(tokenizer, rendered.text):
        if places is None:
            places = chunks.places(rendered.text, settings)
        rendered = replace(rendered, quoted=places)
    return rendered


def _without(text: str, places: Places) -> str:
    """A text without these places, which are in order."""
    starts = [0, *(stop for _, stop in places)]
    stops = [*(start for start, _ in places), len(text)]
    return "".join(text[start:stop] for start, stop in zip(starts, stops, strict=True))
