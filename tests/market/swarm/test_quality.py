"""What is remembered of sources across runs: it fades, it is bounded, and a damaged book is an empty one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.swarm.quality import GUESSED_RATE, MAX_REMEMBERED, Quality, SourceBook

DAY = 86_400.0
NOW = 1_800_000_000.0


def test_a_rate_comes_back_the_next_time_and_fades_with_age() -> None:
    book = SourceBook()
    book.remember("http://a", Quality(80e6, 0.02), peer=True, brought=5, lies=0, now=NOW)
    again = SourceBook.from_bytes(book.to_bytes())
    assert again.quality("http://a", NOW).rate == 80e6
    assert again.quality("http://a", NOW + DAY).rate == 40e6
    assert again.quality("http://a", NOW + 20 * DAY).rate == GUESSED_RATE
    assert again.quality("http://a", NOW + 31 * DAY).rate is None
    assert again.quality("http://b", NOW).rate is None


def test_proven_lies_add_up_and_are_forgiven_with_time() -> None:  # R-SW3
    book = SourceBook()
    for number in range(3):
        assert book.is_blamed("http://liar", NOW + number) is (number == 2)
        book.remember("http://liar", Quality(), peer=True, brought=0, lies=1, now=NOW + number)
    assert book.is_blamed("http://liar", NOW + DAY)
    assert not book.is_blamed("http://liar", NOW + 14 * DAY)


def test_good_peers_are_known_best_first_and_liars_and_origins_are_not_among_them() -> None:
    book = SourceBook()
    book.remember("http://some", Quality(), peer=True, brought=10, lies=0, now=NOW)
    book.remember("http://most", Quality(), peer=True, brought=99, lies=0, now=NOW)
    book.remember("http://none", Quality(), peer=True, brought=0, lies=0, now=NOW)
    book.remember("http://liar", Quality(), peer=True, brought=500, lies=3, now=NOW)
    book.remember("https://origin", Quality(), peer=False, brought=900, lies=0, now=NOW)
    assert book.good_peers(NOW, 8) == ("http://most", "http://some")
    assert book.good_peers(NOW, 1) == ("http://most",)


def test_the_book_is_bounded_and_forgets_the_longest_unseen() -> None:
    book = SourceBook()
    for number in range(MAX_REMEMBERED + 10):
        book.remember(f"http://{number}", Quality(), peer=True, brought=1, lies=0, now=NOW + number)
    assert len(book.rows(NOW)) == MAX_REMEMBERED
    assert "http://9" not in dict(book.rows(NOW))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"http://a": [1]}', b'{"a": ["x",0,0,0,0,0]}', b"0" * 300_000])
def test_a_damaged_book_is_an_empty_one(damage: bytes) -> None:
    assert SourceBook.from_bytes(damage).rows(NOW) == ()


@given(st.binary(max_size=200))
def test_no_bytes_make_reading_the_book_fail(raw: bytes) -> None:
    SourceBook.from_bytes(raw)
