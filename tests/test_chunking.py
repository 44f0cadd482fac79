from __future__ import annotations

import subprocess
import sys
import unicodedata
from itertools import pairwise

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionrag_integrations.documents import chunking
from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.documents.keys import chunk_id
from fusionrag_integrations.documents.types import Document, Passage
from fusionrag_integrations.errors import FusionRAGError, InvalidInputError

SENTENCE = "the river rose in spring and the millers of Ardenne moved their carts uphill."
WORDS = SENTENCE.removesuffix(".").split()

TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "\n\n",
                "\r\n\r\n",
                "\r\n",
                "\n",
                "\t",
                "\u00a0",
                " ",
                "   ",
                ". ",
                "? ",
                "。",
                "\u3000",
            ]
        ),
        st.sampled_from(WORDS),
        st.sampled_from(
            [
                "川は春に増水した",
                "👩‍👩‍👧‍👦",
                "🇳🇴",
                "👍🏽",
                "e\u0301",
                "각",
                "<|endoftext|>",
                "x" * 90,
            ]
        ),
        st.text(max_size=20),
    ),
    max_size=120,
).map("".join)


def count(text: str) -> int:
    """Tokens, by tiktoken's own definition of the pattern and the table."""
    return len(chunking.tiktoken_encoding().encode(text, disallowed_special=()))


def texts(text: str, chunk_tokens: int = 16) -> list[str]:
    return [c.text for c in Chunker(chunk_tokens).split(Document("d", text))]


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.sampled_from([16, 17, 40]))
def test_chunks_are_slices_in_order_with_only_white_space_between(text: str, limit: int) -> None:
    position = 0
    for chunk in texts(text, limit):
        assert chunk == chunk.rstrip()
        assert chunk.splitlines()[0].strip()
        assert 0 < count(chunk) <= limit
        start = text.index(chunk, position)
        assert text[position:start].strip() == ""
        position = start + len(chunk)
    assert text[position:].strip() == ""


def test_a_text_that_fits_is_one_chunk_byte_for_byte() -> None:
    text = "A line.\r\n\tIndented\u00a0text — with   spaces.\r\n\r\nSecond paragraph."
    assert texts(f"\n \n{text}\n", 64) == [text]


@pytest.mark.parametrize("blank", ["", " ", "\r\n\t\u00a0\u3000\n"])
def test_blank_documents_have_no_chunks(blank: str) -> None:
    assert texts(blank) == []


def test_cuts_at_paragraphs_before_lines_before_sentences_before_words() -> None:
    n = count(SENTENCE)
    assert texts(f"{SENTENCE}\n\n{SENTENCE}\n\n{SENTENCE}", n + 5) == [SENTENCE] * 3
    line = SENTENCE.removesuffix(".")
    assert texts(f"{line}\r\n{line}", n + 5) == [line] * 2
    assert texts(f"{SENTENCE} {SENTENCE}", n + 5) == [SENTENCE] * 2
    assert texts("川は春に増水した。" * 4, 16) == ["川は春に増水した。"] * 4
    for part in texts(" ".join(WORDS * 5), 16):
        assert set(part.split()) <= set(WORDS)  # no word is cut


def test_short_paragraphs_are_packed_as_long_as_the_next_one_fits() -> None:
    paragraphs = [f"Paragraph number {i} stands here." for i in range(7)]
    parts = texts("\n\n".join(paragraphs), 20)
    assert "\n\n".join(parts) == "\n\n".join(paragraphs)
    for part, following in pairwise(parts):
        assert count(part + "\n\n" + following.split("\n\n")[0]) > 20
    assert len(parts) < len(paragraphs)


def test_long_pieces_take_as_many_characters_as_fit() -> None:
    text = "Zq7" * 400
    parts = texts(text, 16)
    assert "".join(parts) == text
    position = 0
    for part in parts[:-1]:
        position += len(part)
        assert count(part + text[position]) > 16


def test_never_cuts_inside_a_grapheme_cluster_that_fits() -> None:
    family, accented, flag = "👩‍👩‍👧‍👦", "e\u0301\u0323", "🇳🇴"
    for cluster in (family, accented, flag, "각"):
        for part in texts(cluster * 40, 24):
            assert part.replace(cluster, "") == ""


def test_a_cluster_that_is_larger_than_a_chunk_still_obeys_the_limit() -> None:
    text = "a" + "\u0301" * 200
    parts = texts(text)
    assert "".join(parts) == text
    assert max(map(count, parts)) <= 16
    assert unicodedata.combining(parts[1][0])


def test_special_tokens_are_plain_text() -> None:
    assert texts("Before <|endoftext|> after <|fim_prefix|>.", 64) == [
        "Before <|endoftext|> after <|fim_prefix|>."
    ]


def test_fields_come_from_the_document_and_ids_tell_equal_texts_apart() -> None:
    text = SENTENCE
    document = Document("doc", f"{text}\n\n{text}", "Mills", "private", {"year": 1911})
    first, second = Chunker(count(text) + 3).split(document)
    assert (first.index, second.index) == (0, 1)
    assert first.text == second.text == text
    kept = {"scope": "private", "title": "Mills", "metadata": '{"year": 1911}'}
    assert first.id == chunk_id("doc", text, 0, **kept)
    assert second.id == chunk_id("doc", text, 1, **kept) != first.id
    assert (first.document_id, first.title, first.scope) == ("doc", "Mills", "private")
    assert first.metadata == {"year": 1911}
    assert first.metadata is not document.metadata


def test_too_few_tokens_and_half_characters_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"15.*at least 16"):
        Chunker(15)
    with pytest.raises(InvalidInputError, match=r"'d'.*character 3"):
        Chunker().split(Document("d", "abc\ud83d"))


def test_counts_equal_tiktokens_own_definition() -> None:
    from tiktoken_ext import openai_public

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *a, **k: {})
        assert openai_public.cl100k_base()["pat_str"] == chunking._TOKEN_PATTERN
    encoding = chunking.tiktoken_encoding()
    assert encoding.encode_ordinary("hello world") == [15339, 1917]
    assert len(encoding.token_byte_values()) == 100_256
    assert max(len(token.decode(errors="ignore")) for token in encoding.token_byte_values()) == 128


def test_without_the_bundled_table_tiktokens_cache_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundled = chunking.bundled_ranks()
    assert bundled is not None
    monkeypatch.setattr(chunking, "bundled_ranks", lambda: None)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(bundled.parent))
    encoding = chunking.tiktoken_encoding.__wrapped__()
    assert encoding is tiktoken.get_encoding("cl100k_base")
    assert encoding.encode("hello world") == [15339, 1917]


def test_without_any_table_the_error_says_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr(chunking, "bundled_ranks", lambda: None)
    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(FusionRAGError, match=r"TIKTOKEN_CACHE_DIR.*9b5ad71b2ce5302211f9c61530b329"):
        chunking.tiktoken_encoding.__wrapped__()


def test_importing_loads_no_tokenizer_and_counting_opens_no_socket() -> None:
    program = """
import socket, sys, os, tempfile
def refuse(*a, **k): raise SystemExit("network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
os.environ["TIKTOKEN_CACHE_DIR"] = tempfile.mkdtemp()
from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.documents.types import Document, Passage
print([m for m in ("tiktoken", "regex") if m in sys.modules])
print(len(Chunker(16).split(Document("d", "one two three " * 30))))
print([m for m in ("llama_index", "torch") if m in sys.modules])
print(os.listdir(os.environ["TIKTOKEN_CACHE_DIR"]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.splitlines() == ["[]", "6", "[]", "[]"], run.stderr


CODE = "    def open(self):\n        return self.door\n\n    def shut(self):\n        pass"


@pytest.mark.parametrize(
    "document", [Document("d", CODE), Document("d", passages=(Passage(CODE),))]
)
def test_a_first_lines_indentation_is_kept(document: Document) -> None:
    assert [c.text for c in Chunker(64).split(document)] == [CODE]
    around = Document("d", passages=(Passage(f"\n \t\r\n{CODE} \n "),))
    assert [c.text for c in Chunker(64).split(around)] == [CODE]


def test_parts_of_code_keep_their_indentation() -> None:
    method = "    def number_{0}(self):\n        return [{0}, self.left, self.right]"
    code = "\n\n".join(method.format(i) for i in range(9))
    parts = texts(code, 32)
    assert len(parts) > 3
    assert "\n\n".join(parts) == code
    lines = texts("\n".join(f"    value_{i} = first + second * third" for i in range(9)), 16)
    assert all(line.startswith("    value_") for line in lines)
