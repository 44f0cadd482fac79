from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations.documents.readers import read_documents
from fusionrag_integrations.documents.types import Document
from fusionrag_integrations.errors import DocumentFormatError, InvalidInputError


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(*paths: Path) -> list[Document]:
    return list(read_documents(paths))


def test_text_and_markdown_files(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "bees.txt").write_bytes("Först,\r\nbees.\n".encode())
    (tmp_path / "notes" / "Mill.MD").write_bytes(
        b"\xef\xbb\xbfIntro\r\n\r\n## The mill ##\r\n# X\r\n"
    )
    (tmp_path / "bare.md").write_text("#no heading\n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert read(tmp_path) == [
        Document("bare.md", "#no heading\n", "bare"),
        Document("notes/Mill.MD", "Intro\r\n\r\n## The mill ##\r\n# X\r\n", "The mill"),
        Document("notes/bees.txt", "Först,\r\nbees.\n", "bees"),
    ]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# C# and F#", "C# and F#"),
        ("# C# ###", "C#"),
        ("#\t tab \t#\t", "tab"),
        ("# ##\n##  \n### third", "third"),
        ("####### seven", "file"),
        ("#" + " " * 1_000_000 + "\n# far", "far"),
        ("# a" + " " * 1_000_000 + "b", "a" + " " * 1_000_000 + "b"),
        ("# a" + " #" * 500_000, "a" + " #" * 499_999),
        ("# " * 500_000 + "b", "# " * 499_999 + "b"),
    ],
    ids=range(9),
)
def test_headings(tmp_path: Path, text: str, title: str) -> None:
    """As CommonMark has them, and a megabyte of what may close one takes no longer than others."""
    (tmp_path / "file.md").write_text(text)
    assert [document.title for document in read(tmp_path)] == [title]


def test_ids_are_relative_to_the_common_root(tmp_path: Path) -> None:
    for name in ("a/x.txt", "b/x.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    assert [d.id for d in read(tmp_path / "a" / "x.txt")] == ["x.txt"]
    assert [d.id for d in read(tmp_path / "b", tmp_path / "a")] == ["b/x.txt", "a/x.txt"]
    assert [d.id for d in read(tmp_path / "a", tmp_path / "a" / "x.txt")] == ["x.txt"]


def test_rows_with_text(tmp_path: Path) -> None:
    file = write_rows(
        tmp_path / "rows.jsonl",
        {"text": "One.", "id": "1", "title": "T", "scope": "s", "metadata": {"n": 1, "b": True}},
        {"text": "Two.", "id": 2, "title": None},
        {"text": "Three.\u2028Still three.", "unknown": []},
    )
    file.write_bytes(file.read_bytes() + b"\n  \r\n" + '{"text": "Fünf\u2028 \U0001f41d"}'.encode())
    assert read(file) == [
        Document("1", "One.", "T", "s", {"n": 1, "b": True}),
        Document("2", "Two."),
        Document("rows.jsonl:3", "Three.\u2028Still three."),
        Document("rows.jsonl:6", "Fünf\u2028 \U0001f41d"),
    ]


def test_passages_come_once_and_share_titles_apart(tmp_path: Path) -> None:
    a, b = {"title": "Lilu", "text": "A demon."}, {"title": "Lilu", "text": "A film."}
    file = write_rows(
        tmp_path / "qa.jsonl",
        {"question": "?", "passages": [a | {"supporting": True}, {"text": "No title."}]},
        {"question": "!", "passages": [b, a, b, a | {"scope": "s"}]},
    )
    found = read(file)
    assert [(d.title, d.text, d.scope) for d in found] == [
        ("Lilu", "A demon.", ""),
        ("", "No title.", ""),
        ("Lilu", "A film.", ""),
        ("Lilu", "A demon.", "s"),
    ]
    assert [d.id for d in found[:2]] == ["Lilu", "qa.jsonl:1:1"]
    assert found[2].id.startswith("Lilu#")
    assert len(found[2].id) == 13
    assert found[3].id == "Lilu"  # in its own scope
    assert len({d.key for d in found}) == 4
    assert [d.id for d in read(file)] == [d.id for d in found]


def test_equal_rows_come_once_and_unequal_ones_are_refused(tmp_path: Path) -> None:
    same = {"id": "x", "text": "Same."}
    assert len(read(write_rows(tmp_path / "a.jsonl", same, same))) == 1
    write_rows(tmp_path / "b.jsonl", {"id": "y", "text": "Y"}, {"id": "x", "text": "Other."})
    with pytest.raises(DocumentFormatError, match=r"b\.jsonl, line 2: the id 'x' already names"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": ', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["text"]', 'JSON object with "text"'),
        (b'{"title": "x"}', 'JSON object with "text"'),
        (b'{"text": null}', '"text" must be a string, not null'),
        (b'{"text": 5}', '"text" must be a string, not 5'),
        (b'{"text": "x", "title": []}', '"title" must be a string'),
        (b'{"text": "x", "scope": 1}', '"scope" must be a string'),
        (b'{"text": "x", "id": [1]}', '"id" must be a string or a whole number'),
        (b'{"text": "x", "id": true}', '"id" must be a string or a whole number'),
        (b'{"text": "x", "metadata": {"a": [1]}}', '"metadata" must be an object of'),
        (b'{"text": "x", "metadata": {"a": null}}', '"metadata" must be an object of'),
        (b'{"text": "x", "metadata": "y"}', '"metadata" must be an object of'),
        (b'{"text": "\\ud83d"}', "half a surrogate pair"),
        (b'{"text": "x", "id": "\\ud83d"}', "half a surrogate pair"),
        (b'{"passages": {"text": "x"}}', '"passages" must be a list of objects'),
        (b'{"passages": ["x"]}', '"passages" must be a list of objects'),
        (b'{"passages": [{"title": "x"}]}', '"text" must be a string'),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    documents = read_documents([file])
    assert next(documents).text == "good"
    with pytest.raises(DocumentFormatError) as caught:
        next(documents)
    assert f"{file}, line 3: " in str(caught.value)
    assert message in str(caught.value)


def test_bad_paths_are_named_before_anything_is_read(tmp_path: Path) -> None:
    good = tmp_path / "good.txt"
    good.write_text("x")
    with pytest.raises(DocumentFormatError, match=r"gone: there is no such"):
        next(read_documents([good, tmp_path / "gone"]))
    pdf = tmp_path / "a.pdf"
    pdf.write_bytes(b"%PDF")
    with pytest.raises(DocumentFormatError, match=r"'\.pdf'; accepted: \.txt, \.md, \.jsonl"):
        next(read_documents([good, pdf]))


def test_not_utf8_text_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("one\ntwo\ncafé".encode("latin-1"))
    with pytest.raises(DocumentFormatError, match=r"latin\.txt, line 3: not UTF-8"):
        read(tmp_path)


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(DocumentFormatError, match="No documents found in no paths"):
        read()
    with pytest.raises(DocumentFormatError, match=r"No documents found in .*\.txt, \.md, \.jsonl"):
        read(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DocumentFormatError, match="hold no rows"):
        read(tmp_path)


def test_what_programs_keep_in_a_directory_is_passed_over(tmp_path: Path) -> None:
    tools = [".git/notes.md", ".venv/a.txt", "node_modules/x/README.md", "src/__pycache__/a.txt"]
    for name in (*tools, "env/lib/licence.txt", "env/pyvenv.cfg", "src/.draft.md", "src/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    told: list[Path] = []
    found = list(read_documents([tmp_path], told.append))
    assert [document.id for document in found] == ["src/b.txt"]
    assert {path.relative_to(tmp_path).as_posix() for path in told} == {
        *(".git", ".venv", "node_modules", "src/__pycache__", "env", "src/.draft.md"),
    }
    named = read(tmp_path / "src/.draft.md", tmp_path / "env", tmp_path / ".git/notes.md")
    assert [d.id for d in named] == ["src/.draft.md", "env/lib/licence.txt", ".git/notes.md"]


def test_what_cannot_be_entered_or_read_in_a_directory_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "to-a-file.md").symlink_to(tmp_path / "a.txt")
    (tmp_path / "to-nothing.txt").symlink_to(tmp_path / "gone")
    (tmp_path / "to-itself").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "picture.png").write_bytes(b"-")
    told: list[Path] = []
    found = list(read_documents([tmp_path], told.append))
    assert [document.id for document in found] == ["a.txt", "to-a-file.md"]
    assert {path.name for path in told} == {"to-nothing.txt", "to-itself", "pipe.jsonl"}


@pytest.mark.parametrize("paths", ["docs", Path("docs"), None, 5])
def test_paths_are_a_list(paths: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"paths is .*; give a list of paths"):
        list(read_documents(paths))
