"""Documents, and the chunks that they are split into."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fusionrag_integrations.documents.metadata import plain_metadata
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.inputs import check_text, checked_value, shown

MetadataValue = str | int | float | bool

_BLANK_LINES = re.compile(r"\s*[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")  # as str.splitlines


def canonical_text(text: str) -> str:
    """A text without leading blank lines and trailing white space.

    The first line keeps its indentation, which matters in code.
    """
    text = text.rstrip()
    blank = _BLANK_LINES.match(text)
    return text[blank.end() :] if blank else text


def _convert_metadata(given: Document | Passage) -> None:
    checked_value("metadata", given.metadata, Mapping[str, Any])
    try:
        plain = plain_metadata(given.metadata)
    except RecursionError as error:
        raise InvalidInputError(
            "metadata is nested too deep; give entries with less in them."
        ) from error
    object.__setattr__(given, "metadata", plain)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document that was split elsewhere. Its metadata is added to the document's.

    Metadata is converted by `plain_metadata`: paths and dates become strings.
    """

    text: str
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise InvalidInputError(f"A passage's text is {shown(self.text)}; give a string.")
        _convert_metadata(self)


class DocumentKey(NamedTuple):
    """What identifies a document: ids are unique within a scope."""

    id: str
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A text to ingest. Ingesting another text under the same id and scope replaces it.

    passages: the text as it was split elsewhere, in order, instead of `text`. Each becomes one
    chunk, unchanged but for leading blank lines and trailing white space.
    """

    id: str
    text: str = ""
    title: str = ""
    scope: str = ""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    passages: tuple[Passage, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise InvalidInputError(
                f"A document's id is {shown(self.id)}; give a non-empty string."
            )
        check_text(f"The id {shown(self.id)} of a document", self.id)
        for name in ("text", "title", "scope"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InvalidInputError(
                    f"The {name} of document {self.id!r} is {shown(value)}; give a string."
                )
            check_text(f"The {name} of document {self.id!r}", value)
        _convert_metadata(self)
        checked_value("passages", self.passages, tuple[Passage, ...])
        for passage in self.passages:
            check_text(f"A passage of document {self.id!r}", passage.text)
        if self.text and self.passages:
            raise InvalidInputError(
                f"Document {self.id!r} has a text and passages; give one of them."
            )

    @property
    def key(self) -> DocumentKey:
        return DocumentKey(self.id, self.scope)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document. `text` is canonical, otherwise exactly the source."""

    id: str
    document_id: str
    index: int
    text: str
    title: str = ""
    scope: str = ""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.text or self.text != canonical_text(self.text):
            raise InvalidInputError(
                f"Chunk {self.id!r} needs a non-empty text without blank lines before it or white "
                "space behind it."
            )

    @property
    def document(self) -> DocumentKey:
        """The key of its document."""
        return DocumentKey(self.document_id, self.scope)

    @property
    def embedding_text(self) -> str:
        """The text to embed: the title tells what a chunk full of pronouns is about."""
        return f"{self.title}\n{self.text}" if self.title else self.text
