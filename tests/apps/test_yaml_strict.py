"""YAML is read as plain text values, and everything that two parsers could read differently is refused."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from apps.problems import Refused
from apps.yaml_strict import MAX_BYTES, MAX_DEPTH, load


def test_every_scalar_is_the_text_that_was_written() -> None:
    text = "{version: 2.10, ports: [22:22, 010, 1e3], yes: no, none: ~, when: 2001-01-01, x: '', y: 0x10}"
    assert load(text, where="m") == {
        "version": "2.10",
        "ports": ["22:22", "010", "1e3"],
        "yes": "no",
        "none": "~",
        "when": "2001-01-01",
        "x": "",
        "y": "0x10",
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "m:3:1: key 'a' appears twice"),
        ("a: &x 1\n", "m:1:4: anchor &x"),
        ("a: &x [1]\nb: *x\n", "anchor &x"),
        ("a: !!python/object/apply:os.system [id]\n", "tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !!str 1\n", "tag tag:yaml.org,2002:str"),
        ("a:\n  <<: {b: 1}\n", "merge key <<"),
        ("[a]: 1\n", "a key that is not text"),
        ("a: 1\n---\nb: 2\n", "a second document"),
        ("a: [1, 2\n", "m:2:1: "),
        ("a: b: c\n", "m:1:5: mapping values are not allowed here"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_place(text: str, says: str) -> None:
    with pytest.raises(Refused) as caught:
        load(text, where="m")
    assert says in str(caught.value)


def test_billion_laughs_is_refused_at_its_first_anchor() -> None:
    text = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))
    with pytest.raises(Refused, match="anchor &a"):
        load(text, where="m")


def test_depth_and_size_are_bounded() -> None:
    with pytest.raises(Refused, match="nested too deep"):
        load("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), where="m")
    with pytest.raises(Refused, match="nested too deep or too long"):
        load("[" + "a," * 30_000 + "]", where="m")
    with pytest.raises(Refused, match="more than"):
        load("a" * (MAX_BYTES + 1), where="m")
    with pytest.raises(Refused, match="not UTF-8 at byte 1"):
        load(b"a\xff", where="m")


plain = st.recursive(
    st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain)
def test_what_yaml_writes_quoted_is_read_back(tree: object) -> None:
    assert load(yaml.safe_dump(tree, default_style='"', allow_unicode=True), where="m") == tree


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        load(raw, where="m")
    except Refused:
        return
