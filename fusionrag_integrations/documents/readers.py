"""Files -> documents: plain text, Markdown, and JSON lines."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionrag_integrations.documents.types import Document, DocumentKey, MetadataValue
from fusionrag_integrations.errors import DocumentFormatError, InvalidInputError
from fusionrag_integrations.support.inputs import checked_value, holds_several, shown

ENDINGS = (".txt", ".md", ".jsonl")

_TOOLS = ("__pycache__", "node_modules")
_HEADING = re.compile(r"^#{1,6}[ \t](.*)$", re.MULTILINE)


def read_documents(
    paths: Sequence[Path], passed_over: Callable[[Path], object] = lambda path: None
) -> Iterator[Document]:
    """The documents in files and, recursively and in sorted order, in directories.

    Within directories, hidden names (`.git`), virtual environments (with a `pyvenv.cfg`),
    `__pycache__` and `node_modules` are skipped, and so are links to directories, broken links and
    what isn't a regular file. What `paths` names itself is always read. passed_over: called with
    each skipped path.

    .txt, .md: one document per file. Its id is the path relative to the deepest directory that
    holds all of `paths`; its title is the first Markdown heading, or the file's stem.

    .jsonl: one object per line, either {"text", and optionally "id", "title", "scope",
    "metadata"}, or {"passages": [{"title", "text"}, ...]} as in question-answering data sets.
    Each distinct passage is one document, whose id is its title; a short hash is appended for
    another text under the same title. Without an id or title, the id is file and line.

    A document that occurs twice is yielded once. Raises `DocumentFormatError`, naming file and
    line, for what can't be read, for two texts under one id and scope, and for no documents at all.
    """
    if not holds_several(paths) or isinstance(paths, Path):
        raise InvalidInputError(f"paths is {shown(paths)}; give a list of paths.")
    paths = list(checked_value("paths", paths, Iterable[str | Path]))
    roots = [Path(path).resolve() for path in paths]
    files = list(dict.fromkeys(file for root in roots for file in _files(root, passed_over)))
    if not files:
        raise DocumentFormatError(
            f"No documents found in {', '.join(map(str, paths)) or 'no paths'}; "
            f"give files that end in {_accepted()}, or directories that hold some."
        )
    base = Path(os.path.commonpath([p if p.is_dir() else p.parent for p in roots]))
    seen: dict[DocumentKey, str] = {}  # document -> hash of its text
    for file in files:
        name = _name(file, base)
        read = _read_lines if file.suffix.lower() == ".jsonl" else _read_text
        for where, document, is_passage in read(file, name):
            content = hashlib.blake2b(document.text.encode()).hexdigest()
            if is_passage and seen.get(document.key, content) != content:
                document = replace(document, id=f"{document.id}#{content[:8]}")
            if document.key not in seen:
                seen[document.key] = content
                yield document
            elif seen[document.key] != content:
                raise DocumentFormatError(
                    f"{where}: the id {document.id!r} already names another text; "
                    "give each document of a scope an id of its own."
                )
    if not seen:
        raise DocumentFormatError(
            f"No documents found in {', '.join(map(str, paths))}; the files hold no rows."
        )


def _name(file: Path, base: Path) -> str:
    """A file's path relative to `base`, from which its documents' ids are made."""
    name = file.relative_to(base).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DocumentFormatError(
            f"{os.fsencode(file).decode(errors='backslashreplace')}: its name is not UTF-8 text; "
            "rename the file, or the directory that has such a name."
        ) from error
    return name


_Found = Iterator[tuple[str, Document, bool]]
"""File and line, the document, and whether it is a passage."""


def _files(root: Path, passed_over: Callable[[Path], object]) -> list[Path]:
    if root.is_dir():
        return sorted(_below(root, passed_over))
    if not root.is_file():
        raise DocumentFormatError(f"{root}: there is no such file or directory.")
    if root.suffix.lower() not in ENDINGS:
        raise DocumentFormatError(
            f"{root}: can't read files that end in {root.suffix!r}; accepted: {_accepted()}."
        )
    return [root]


def _below(directory: Path, passed_over: Callable[[Path], object]) -> Iterator[Path]:
    """The readable files in and below a directory; links to directories aren't followed."""
    for path in sorted(directory.iterdir()):
        is_link, is_file = path.is_symlink(), path.is_file()
        has_ending = path.suffix.lower() in ENDINGS
        enters = path.is_dir() and not is_link
        reads = has_ending and is_file
        unreadable = not (enters or reads) and (has_ending or (is_link and not is_file))
        if unreadable or ((enters or reads) and _is_for_tools(path)):
            passed_over(path)
        elif enters:
            yield from _below(path, passed_over)
        elif reads:
            yield path


def _is_for_tools(path: Path) -> bool:
    """Whether a file or directory belongs to a tool, and is no document of the user's."""
    return path.name.startswith(".") or path.name in _TOOLS or (path / "pyvenv.cfg").is_file()


def _accepted() -> str:
    return ", ".join(ENDINGS)


def _read_text(file: Path, name: str) -> _Found:
    data = _read_bytes(file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DocumentFormatError(f"{file}, line {line}: not UTF-8 text.") from error
    headings = _headings(text) if file.suffix.lower() == ".md" else iter(())
    yield str(file), Document(id=name, text=text, title=next(headings, file.stem)), False


def _headings(text: str) -> Iterator[str]:
    """Markdown headings that aren't empty, without closing #s."""
    for line in _HEADING.finditer(text):
        heading = line[1].strip()
        opened = heading.rstrip("#")
        if not opened or opened[-1].isspace():
            heading = opened.rstrip()
        if heading:
            yield heading


def _read_lines(file: Path, name: str) -> _Found:
    for number, line in enumerate(_read_bytes(file).split(b"\n"), start=1):
        where = f"{file}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeDecodeError as error:
            raise DocumentFormatError(f"{where}: not UTF-8 text.") from error
        except UnicodeEncodeError as error:
            raise DocumentFormatError(
                f"{where}: holds half a surrogate pair; write both halves, or the character."
            ) from error
        except (ValueError, RecursionError) as error:
            raise DocumentFormatError(f"{where}: not JSON ({error}).") from error
        if not isinstance(row, dict) or not {"text", "passages"} & row.keys():
            raise DocumentFormatError(
                f'{where}: needs a JSON object with "text", or with "passages".'
            )
        if "text" in row:
            identity = row.get("id")
            identity = f"{name}:{number}" if identity in (None, "") else identity
            yield where, _document(row, identity, where), False
            continue
        passages = row["passages"]
        if not isinstance(passages, list) or not all(isinstance(p, dict) for p in passages):
            raise DocumentFormatError(f'{where}: "passages" must be a list of objects.')
        for position, passage in enumerate(passages):
            identity = passage.get("title") or f"{name}:{number}:{position}"
            yield where, _document(passage, identity, where), True


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DocumentFormatError(f"{file}: can't be read ({error.strerror}).") from error


def _document(row: Mapping[str, Any], identity: object, where: str) -> Document:
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise DocumentFormatError(f'{where}: "id" must be a string or a whole number.')
    return Document(
        id=str(identity),
        text=_string(row, "text", where),
        title=_string(row, "title", where, default=""),
        scope=_string(row, "scope", where, default=""),
        metadata=_metadata(row, where),
    )


def _string(row: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = row.get(key)
    value = default if value is None else value
    if not isinstance(value, str):
        raise DocumentFormatError(f'{where}: "{key}" must be a string, not {json.dumps(value)}.')
    return value


def _metadata(row: Mapping[str, Any], where: str) -> dict[str, MetadataValue]:
    value = row.get("metadata") or {}
    if not isinstance(value, dict) or not all(
        isinstance(item, str | int | float | bool) for item in value.values()
    ):
        raise DocumentFormatError(
            f'{where}: "metadata" must be an object of strings, numbers and booleans.'
        )
    return value
