"""How an answer came about as one self-contained page, for a browser or a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.serving.answer.reuse import Fallback
from fusionrag_integrations.serving.answer.trace import PromptPart, PromptTrace
from fusionrag_integrations.serving.usage import TTFTBreakdown, Usage
from fusionrag_integrations.support.atomic_files import write_output

BEGINNING = 60  # characters of a neighbour that are shown


@dataclass(frozen=True, slots=True)
class Explanation:
    """A self-contained page: no network, no script."""

    html: str = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write the page to a file that only its owner can read, since it holds the prompt.

        Raises `InvalidInputError` where there is no such directory, and where the path is something
        other than a file.
        """
        write_output(Path(path), self.html.encode(), private=True)

    def _repr_html_(self) -> str:
        """In a frame, so that a notebook's styles and the page's don't mix.

        Sandboxed, so that no script in a document's text could run.
        """
        return (
            f'<iframe sandbox srcdoc="{escape(self.html)}" title="How the answer came about" '
            'style="width: 100%; height: 40em; border: 0"></iframe>'
        )


@dataclass(frozen=True, slots=True)
class _Share:
    """A part of a bar. share: of the whole, in percent."""

    name: str
    amount: str
    share: float


@dataclass(frozen=True, slots=True)
class _Card:
    """A passage, with the lines above it."""

    passage: PromptPart
    title: str
    neighbours: tuple[str, ...]
    reason: str


def explained(
    text: str,
    usage: Usage,
    ttft: TTFTBreakdown,
    full_reason: str,
    fallbacks: Sequence[Fallback],
    trace: PromptTrace | None,
) -> Explanation:
    """The page. Raises `InvalidInputError` without a trace."""
    if trace is None:
        raise InvalidInputError("This answer has no trace of its prompt; only an engine's have.")
    reasons = {fallback.chunk_id: fallback.reason for fallback in fallbacks}
    neighbours = trace.fused_behind()
    cards = [_card(passage, neighbours, reasons) for passage in trace.passages()]
    times = {name: ms for name, ms in asdict(ttft).items() if ms > 0.0}
    counts = {
        "reused": usage.reused_tokens,
        "recomputed": usage.recomputed_tokens,
        "captured": usage.captured_tokens,
        "fresh": usage.fresh_tokens,
    }
    html = _template().render(
        answer=text.strip(),
        usage=usage,
        total_ms=f"{ttft.total:,.1f}",
        times=_shares(times, "{:,.1f} ms"),
        counts=_shares({name: n for name, n in counts.items() if n}, "{:,}"),
        full_reason=full_reason,
        cards=cards,
    )
    return Explanation(html)


def _shares(amounts: dict[str, float] | dict[str, int], form: str) -> list[_Share]:
    total = sum(amounts.values()) or 1
    return [_Share(n, form.format(a), round(100 * a / total, 2)) for n, a in amounts.items()]


def _card(
    passage: PromptPart, neighbours: Mapping[str, Sequence[Chunk]], reasons: Mapping[str, str]
) -> _Card:
    chunk = passage.chunk
    if chunk is None:
        return _Card(passage, "", (), "")
    shown = neighbours.get(chunk.id, ()) if passage.kind == "fused" else ()
    return _Card(passage, _title(chunk), tuple(map(_beginning, shown)), reasons.get(chunk.id, ""))


def _title(chunk: Chunk) -> str:
    return f"{chunk.title or chunk.document_id}, chunk {chunk.index + 1}"


def _beginning(chunk: Chunk) -> str:
    text = chunk.text if len(chunk.text) <= BEGINNING else f"{chunk.text[:BEGINNING]}…"
    return f"{_title(chunk)}: {text}"


@cache
def _template() -> Template:
    source = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
