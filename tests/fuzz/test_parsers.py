"""No bytes make a parser raise: hypothesis bends well-formed ones, and makes others up."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.parsers import TARGETS, seeds


@st.composite
def bent(draw: st.DrawFn) -> bytes:
    """A seed with a few places replaced, cut short or said twice."""
    data = bytearray(draw(st.sampled_from(seeds())))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data) * draw(st.sampled_from((1, 1, 2)))


@pytest.mark.parametrize("target", TARGETS)
@settings(deadline=None, max_examples=150)
@given(data=st.one_of(st.binary(max_size=300), bent()))
@example(data=b"")
@example(data=b"[" * 3000)
@example(data=b'{"a":' * 3000)
@example(data=b'"\\ud800"')
@example(data=b'["EVENT","\\ud800",{}]')
@example(data=b"[1e999,-0,18446744073709551616]")
def test_bytes_of_any_kind_are_read_or_refused_and_never_raise(target: str, data: bytes) -> None:
    TARGETS[target](data)  # R-DS9
