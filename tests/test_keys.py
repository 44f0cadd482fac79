"""Ids and keys: equal for equal inputs, different for any other."""

import struct
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionrag_integrations.documents.keys import chunk_id, fused_key, isolated_key
from fusionrag_integrations.errors import InvalidInputError

texts = st.text(max_size=8)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=4)
hex_keys = st.lists(st.sampled_from(["ab", "abc", "c", ""]), max_size=4)
chunk_inputs = st.tuples(texts, texts, st.integers(0, 30), texts, texts, texts)
isolated_inputs = st.tuples(ids.map(tuple), texts, texts)
fused_inputs = st.tuples(st.sampled_from(["ab", "abc", ""]), hex_keys.map(tuple))


def named(document, text, occurrence, scope="", title="", metadata=""):
    return chunk_id(document, text, occurrence, scope=scope, title=title, metadata=metadata)


@given(chunk_inputs, chunk_inputs)
def test_chunk_ids_are_equal_exactly_for_equal_inputs(a, b):
    assert (named(*a) == named(*b)) == (a == b)


@given(isolated_inputs, isolated_inputs)
def test_isolated_keys_are_equal_exactly_for_equal_inputs(a, b):
    assert (isolated_key(*a) == isolated_key(*b)) == (a == b)


@given(fused_inputs, fused_inputs)
def test_fused_keys_are_equal_exactly_for_equal_inputs(a, b):
    assert (fused_key(*a) == fused_key(*b)) == (a == b)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (named("ab", "c", 0), named("a", "bc", 0)),
        (named("a", "c", 0, scope="b"), named("a", "c", 0, title="b")),
        (named("a", "b1", 1), named("a", "b", 11)),
        (isolated_key([1], "ab", "c"), isolated_key([1], "a", "bc")),
        (isolated_key([1, 2], "s", ""), isolated_key([2, 1], "s", "")),
        (isolated_key([], "s", "t"), isolated_key([], "t", "s")),
        (fused_key("ab", ["cd"]), fused_key("ab", ["c", "d"])),
        (fused_key("ab", ["cd", "ef"]), fused_key("ab", ["ef", "cd"])),
        (fused_key("ab", []), fused_key("ab", [""])),
    ],
)
def test_moving_a_boundary_or_the_order_changes_the_key(one, other):
    assert one != other


def test_domains_are_apart():
    # The same bytes in the same fields: only the domain tells them apart.
    assert len({named("", "", 0), isolated_key([], "", "0"), fused_key("", ["", "0"])}) == 3


def test_keys_are_the_documented_hashes():
    def fields(*values: bytes) -> str:
        return sha256(b"".join(struct.pack("<Q", len(v)) + v for v in values)).hexdigest()

    expected = fields(b"chunk", b"d", b"s", b"t", b"{}", b"\xc3\xa9", b"2")
    assert named("d", "é", 2, scope="s", title="t", metadata="{}") == expected
    ids_bytes = (7).to_bytes(8, "little") + (300).to_bytes(8, "little")
    assert isolated_key([7, 300], "sig", "x") == fields(b"isolated", ids_bytes, b"sig", b"x")
    assert fused_key("aa", ["bb", "cc"]) == fields(b"fused", b"aa", b"bb", b"cc")


def test_a_chunk_id_stays_when_other_text_is_inserted():
    def ids_of(texts: list[str]) -> list[str]:
        return [named("d", text, texts[:i].count(text)) for i, text in enumerate(texts)]

    before = ids_of(["a", "b", "a"])
    after = ids_of(["new", "a", "new", "b", "a"])
    assert len(set(before)) == 3
    assert [after[1], after[3], after[4]] == before


def test_text_that_is_no_unicode_is_refused_by_name():
    with pytest.raises(InvalidInputError, match="surrogate"):
        named("d", "\ud800", 0)
