"""What a node must not forget: broken releases, signers, days of running; whole, bounded, and never silently empty."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from market.model import Digest, SignedBy
from market.trust import DamagedMemory, KnownSigner, Ran, Remembered, TrustMemory
from market.trust.memory import MAX_BROKEN, MAX_TEXT
from tests.market.trust.people import did

OLD, NEW = SignedBy(did("ada"), 0, "z6MkOld"), SignedBy(did("ada"), 1, "z6MkNew")
OTHER = SignedBy(did("eve"), 0, "z6MkEve")


def test_what_was_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    learned = Remembered().with_broken(Digest("ab" * 32), "A layer differs.").with_signer(KnownSigner("hello", OLD))
    TrustMemory(path).save(learned.with_ran({"cd" * 32: Ran(3600, 7)}))
    found = TrustMemory(path).load()
    assert found.broken_releases() == {Digest("ab" * 32): "A layer differs."}
    assert found.signer_of("hello", OLD.publisher) == OLD
    assert found.ran == {"cd" * 32: Ran(3600, 7)}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_signer_of_the_same_publisher_is_compared_and_else_whoever_had_the_name(tmp_path: Path) -> None:
    known = Remembered().with_signer(KnownSigner("hello", OLD))
    assert known.signer_of("hello", OTHER.publisher) == OLD
    assert known.signer_of("other", OLD.publisher) is None
    both = known.with_signer(KnownSigner("hello", OTHER))
    assert both.signer_of("hello", OLD.publisher) == OLD
    assert both.signer_of("hello", OTHER.publisher) == OTHER


def test_a_pinned_signer_stands_before_one_that_was_merely_installed() -> None:
    known = Remembered().with_signer(KnownSigner("hello", OLD, pinned=True)).with_signer(KnownSigner("hello", OTHER))
    assert known.signer_of("hello", OTHER.publisher) == OLD
    installed_again = known.with_signer(KnownSigner("hello", NEW))
    assert [one.pinned for one in installed_again.signers if one.signed == NEW] == [True]
    assert installed_again.without_signer("hello", NEW.publisher).signer_of("hello", OTHER.publisher) == OTHER


def test_what_is_remembered_is_bounded_and_the_oldest_go_first() -> None:
    known = Remembered()
    for number in range(MAX_BROKEN + 3):
        known = known.with_broken(Digest(f"{number:064x}"), "x" * 10_000)
    assert len(known.broken) == MAX_BROKEN
    assert f"{2:064x}" not in known.broken
    assert {len(text) for text in known.broken.values()} == {MAX_TEXT}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"schema":2,"broken":{},"signers":[],"ran":{}}',
        b'{"schema":1,"broken":{"nothex":""},"signers":[],"ran":{}}',
        b'{"schema":1,"broken":{},"signers":[{}],"ran":{}}',
        b" " * (5 << 20),
        b"\xff",
    ],
)
def test_a_damaged_memory_is_a_fault_and_never_an_empty_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trust.json"
    path.write_bytes(content)
    with pytest.raises(DamagedMemory):
        TrustMemory(path).load()
    assert path.read_bytes() == content
