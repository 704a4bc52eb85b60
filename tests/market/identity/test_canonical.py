"""Documents have one spelling. Public door: canonical_bytes, parse_canonical, document_digest."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from market.identity import NotCanonical, canonical_bytes, document_digest, parse_canonical

KEYS = st.text(st.characters(max_codepoint=127), max_size=12)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
INTEGERS = st.integers(-(2**53) + 1, 2**53 - 1)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=6)


@given(DOCUMENTS)
def test_our_form_is_the_one_of_an_independent_rfc8785_implementation(document: dict[str, Any]) -> None:
    assert canonical_bytes(document) == rfc8785.dumps(document)


@given(DOCUMENTS)
def test_what_we_write_is_read_back(document: dict[str, Any]) -> None:
    assert parse_canonical(canonical_bytes(document)) == document


@given(DOCUMENTS)
def test_another_spelling_of_the_same_document_is_refused(document: dict[str, Any]) -> None:
    spelled = json.dumps(document, sort_keys=True, indent=1).encode()
    if spelled != canonical_bytes(document):
        with pytest.raises(NotCanonical):
            parse_canonical(spelled)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused_and_never_crash(data: bytes) -> None:
    with contextlib.suppress(NotCanonical):
        assert canonical_bytes(parse_canonical(data)) == data


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":2}',
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'{"a":1}\n',
        b'{"a":1.0}',
        b'{"a":1e2}',
        b'{"a":-0}',
        b'{"a":9007199254740992}',
        b'{"\xc3\xa9":1}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\u0041"}',
        b'{"a":"\\/"}',
        b"[1]",
        b'"text"',
        b"",
        b"[" * 20_000,
        b'{"a":' + b"[" * 30 + b"]" * 30 + b"}",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_non_canonical_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(NotCanonical):
        parse_canonical(data)


def test_a_document_above_its_bound_is_refused_before_it_is_parsed() -> None:
    data = canonical_bytes({"a": "x" * 100})
    with pytest.raises(NotCanonical, match="more than the 50"):
        parse_canonical(data, 50)


def test_the_digest_leaves_the_proof_out_so_that_signing_twice_is_no_equivocation() -> None:
    assert document_digest({"a": 1, "proof": {"x": 1}}) == document_digest({"a": 1, "proof": {"x": 2}})
    assert document_digest({"a": 1}) != document_digest({"a": 2})


ODD = st.recursive(
    st.floats() | st.integers(-(2**70), 2**70) | st.text(max_size=8) | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=40,
)


@given(st.dictionaries(st.text(max_size=4), ODD, max_size=3))
def test_reading_refuses_what_writing_refuses(document: dict[str, Any]) -> None:
    try:
        written = canonical_bytes(document)
    except NotCanonical:
        written = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )
        with pytest.raises(NotCanonical):
            parse_canonical(written)
    else:
        assert parse_canonical(written) == document
