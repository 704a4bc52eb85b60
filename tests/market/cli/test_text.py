"""No stranger's text drives the terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from market.cli.text import duration_text, safe, shortened, size_text, table


@given(st.text())
def test_no_control_or_bidi_character_gets_through(text: str) -> None:
    shown = safe(text)
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs") for c in shown)
    if all(unicodedata.category(c)[0] in "LNPSZ" for c in text):
        assert shown == text


def test_terminal_escape_is_shown_as_text() -> None:
    assert safe("a\x1b[2Jb\u202ec") == "a\\u{1b}[2Jb\\u{202e}c"


def test_table_aligns_and_escapes_cells() -> None:
    assert table(("A", "B"), [("x\n", 1), ("longer", 22)]) == "A       B\nx\\u{a}  1\nlonger  22"


def test_sizes_are_iec() -> None:
    assert [size_text(n) for n in (0, 1023, 1024, 64 * 1024**2, 3 * 1024**4)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "64.0 MiB",
        "3.0 TiB",
    ]


def test_time_spans_are_told_in_one_unit() -> None:
    seconds = (-1, 0, 59.9, 60, 3599, 3600, 47 * 3600, 48 * 3600, 9 * 86400)
    told = ["0 s", "0 s", "59 s", "1 min", "59 min", "1 h", "47 h", "2 d", "9 d"]
    assert [duration_text(span) for span in seconds] == told


@given(st.text(), st.integers(4, 80))
def test_what_is_shortened_fits_and_begins_as_it_did(text: str, most: int) -> None:
    shown = shortened(text, most)
    assert len(shown) <= most
    assert shown == text or text.startswith(shown.removesuffix("..."))


def test_a_long_reason_is_cut_between_words() -> None:
    assert shortened("Another publisher: did:key:z6Mk signed this", 30) == "Another publisher:..."
    assert shortened("as it is", 8) == "as it is"
