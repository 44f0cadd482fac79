"""Published question-answering data sets -> documents, and questions over them.

hotpotqa   hotpot_dev_distractor_v1.json: a list (Yang et al., 2018)
2wiki      dev.json: a list, whose rows also have `evidences` (Ho et al., 2020)
musique    musique_ans_v1.0_dev.jsonl: a JSON object a line (Trivedi et al., 2022)
triviaqa   qa/wikipedia-dev.json, qa/web-dev.json: an object whose "Data" is a list; their texts
           lie in ../evidence/wikipedia (EntityPages) and ../evidence/web (SearchResults), under
           each page's "Filename" (reading comprehension; Joshi et al., 2017)
jsonl      ours: a JSON object a line, with id, question, answers, passages of title and text
"""

from __future__ import annotations

import hashlib
import random
import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from fusionrag_integrations.documents.types import Document
from fusionrag_integrations.errors import InvalidInputError

EVIDENCE_WORDS = 800
"""Words kept of a TriviaQA text, some of which are books. 800 is what the data set's authors keep
for readers (max_num_tokens of their utils/convert_to_squad_format.py); theirs are NLTK's words."""

_Filled = Annotated[str, Field(min_length=1)]
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class QAItem:
    """A question. `context` are the ids of its documents, in the order of the prompt."""

    id: str
    kind: str
    question: str
    answers: tuple[str, ...]
    context: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QADataset:
    """Questions, and each document that a context names, once."""

    name: str
    documents: tuple[Document, ...]
    items: tuple[QAItem, ...]


def load_dataset(name: str, path: Path, limit: int | None, seed: int) -> QADataset:
    """The questions in `path`, or `limit` of them (at most) drawn by `seed`, in the file's order.

    name: one of DATASET_NAMES; says which format the file has. Blank paragraphs are left out,
    and one that several contexts share is one document. A question's kind is the published
    type or number of hops, and the data set's name where there is neither.

    Raises InvalidInputError, naming the file, for another format, and where there are no
    answers, as in the published test sets.
    """
    if name not in _ROWS:
        raise InvalidInputError(f"Unknown dataset {name!r}; known are {', '.join(DATASET_NAMES)}.")
    if limit is not None and limit < 1:
        raise InvalidInputError(f"limit is {limit}; give at least 1, or None for all questions.")
    rows = _read(name, path)
    if limit is not None and limit < len(rows):
        rows = [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]
    documents: dict[str, Document] = {}
    items: list[QAItem] = []
    for row in rows:
        read = [_document(title, text) for title, text in row.paragraphs(path) if text.strip()]
        context = {document.id: document for document in read}
        if not context:
            raise InvalidInputError(
                f"{path}: question {row.id!r} has no text to answer from; expected at least one."
            )
        documents |= context
        accepted = tuple(dict.fromkeys(row.accepted()))
        items.append(QAItem(row.id, row.kind() or name, row.question, accepted, tuple(context)))
    return QADataset(name, tuple(documents.values()), tuple(items))


def _document(title: str, text: str) -> Document:
    content = hashlib.blake2b(f"{title}\0{text}".encode(), digest_size=8).hexdigest()
    return Document(id=f"{title}#{content}", text=text, title=title)


class _Row(BaseModel, ABC):
    """A question as published. Fields that aren't named here are passed over."""

    id: _Filled
    question: _Filled

    @classmethod
    def expected(cls) -> str:
        """The format in words, for errors."""
        names = ", ".join(field.alias or name for name, field in cls.model_fields.items())
        return f"rows with {names}"

    def answerable(self) -> bool:
        return True

    def kind(self) -> str:
        """Empty where the data set has no kinds."""
        return ""

    @abstractmethod
    def accepted(self) -> Iterable[str]:
        """The accepted answers, the main one first."""

    @abstractmethod
    def paragraphs(self, path: Path) -> Iterable[tuple[str, str]]:
        """Titles and texts to answer from. `path` is the file that the row stands in."""


class _Sentences(_Row):
    """What HotpotQA and 2WikiMultiHopQA share."""

    id: _Filled = Field(alias="_id")
    answer: _Filled
    type: _Filled
    context: list[tuple[str, list[str]]]

    def kind(self) -> str:
        return self.type

    def accepted(self) -> Iterable[str]:
        return [self.answer]

    def paragraphs(self, path: Path) -> Iterable[tuple[str, str]]:
        # HotpotQA's sentences carry the space that stands before them, 2Wiki's don't.
        return [(title, " ".join(s.strip() for s in text)) for title, text in self.context]


class _HotpotQA(_Sentences):
    level: str  # tells it from 2Wiki


class _TwoWiki(_Sentences):
    evidences: list[object]  # tells it from HotpotQA


class _MuSiQueParagraph(BaseModel):
    title: str
    paragraph_text: str


class _MuSiQue(_Row):
    id: str = Field(pattern=r"^[2-9]hop")
    answer: _Filled
    answer_aliases: list[_Filled]
    is_answerable: bool = Field(alias="answerable")
    context: list[_MuSiQueParagraph] = Field(alias="paragraphs")

    def answerable(self) -> bool:
        # MuSiQue-Full gives each question a twin without its evidence: nothing to score there.
        return self.is_answerable

    def kind(self) -> str:
        return self.id[: len("2hop")]  # ids are like 3hop1__..., where 1 is the graph's shape

    def accepted(self) -> Iterable[str]:
        return [self.answer, *self.answer_aliases]

    def paragraphs(self, path: Path) -> Iterable[tuple[str, str]]:
        return [(p.title, p.paragraph_text) for p in self.context]


class _TriviaAnswer(BaseModel):
    value: _Filled = Field(alias="Value")
    aliases: list[str] = Field(alias="Aliases")
    # The official score compares with these, which are normalised a little otherwise than ours.
    normalized: list[str] = Field(alias="NormalizedAliases")


class _TriviaPage(BaseModel):
    title: str = Field(alias="Title")
    filename: _Filled = Field(alias="Filename")


class _TriviaQA(_Row):
    id: _Filled = Field(alias="QuestionId")
    question: _Filled = Field(alias="Question")
    answer: _TriviaAnswer = Field(alias="Answer")
    wikipedia: list[_TriviaPage] = Field(alias="EntityPages", default=[])
    web: list[_TriviaPage] = Field(alias="SearchResults", default=[])

    def accepted(self) -> Iterable[str]:
        return [self.answer.value, *self.answer.aliases, *self.answer.normalized]

    def paragraphs(self, path: Path) -> Iterator[tuple[str, str]]:
        evidence = path.resolve().parent.parent / "evidence"
        if not evidence.is_dir():
            raise InvalidInputError(
                f"{path} has no texts: {evidence} isn't a directory; expected TriviaQA's there."
            )
        for pages, folder in ((self.wikipedia, "wikipedia"), (self.web, "web")):
            for page in pages:
                yield page.title, _first_words(_text(evidence / folder / page.filename))


class _Passage(BaseModel):
    title: str
    text: str


class _Line(_Row):
    answers: list[_Filled] = Field(min_length=1)
    passages: list[_Passage]

    def accepted(self) -> Iterable[str]:
        return self.answers

    def paragraphs(self, path: Path) -> Iterable[tuple[str, str]]:
        return [(p.title, p.text) for p in self.passages]


_ROWS: dict[str, type[_Row]] = {
    "hotpotqa": _HotpotQA,
    "2wiki": _TwoWiki,
    "musique": _MuSiQue,
    "triviaqa": _TriviaQA,
    "jsonl": _Line,
}
DATASET_NAMES = tuple(_ROWS)


def _read(name: str, path: Path) -> list[_Row]:
    """All questions of a file that have an answer."""
    row_type = _ROWS[name]
    rows: list[_Row] = []
    for number, value in enumerate(_values(path, lines=name in ("musique", "jsonl")), start=1):
        try:
            rows.append(row_type.model_validate(value))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"])) or "the row"
            raise InvalidInputError(
                f"{path} isn't in the format {name!r}: row {number}, {field}: {first['msg']}, "
                f"found {reprlib.repr(first['input'])}; expected {row_type.expected()}."
            ) from error
    if not (rows := [row for row in rows if row.answerable()]):
        raise InvalidInputError(f"{path} holds no questions; expected {row_type.expected()}.")
    return rows


def _values(path: Path, *, lines: bool) -> list[object]:
    """The file's rows. pydantic's reader refuses half a surrogate pair, which json takes."""
    text = _text(path)
    if lines:
        numbered = enumerate(text.split("\n"), start=1)
        form = "one JSON object a line"
        return [_parsed(x, f"Line {n} of {path}", form) for n, x in numbered if x.strip()]
    value = _parsed(text, str(path), "one JSON value")
    rows = value.get("Data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise InvalidInputError(
            f'{path} holds {reprlib.repr(value)}; expected a list, or an object with a list "Data".'
        )
    return rows


def _parsed(text: str, where: str, form: str) -> object:
    try:
        value: object = from_json(text)
    except ValueError as error:
        raise InvalidInputError(f"{where} isn't JSON ({error}); expected {form}.") from error
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{path} can't be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} isn't UTF-8 text ({error.reason}).") from error


def _first_words(text: str) -> str:
    """`text` up to its word number EVIDENCE_WORDS, with its lines as they are."""
    ends = [word.end() for word in islice(_WORD.finditer(text), EVIDENCE_WORDS)]
    return text[: ends[-1]] if ends else ""
