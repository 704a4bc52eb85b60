"""The cast of the trust tests: people with well-formed names, an app with a release, and evidence about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from market.identity import didkey
from market.model import AppName, Attestation, AttestKind, Digest, Flag, Listing, Release, TrustEvidence

NOW = 1_800_000_000
DAY = 86_400


def did(name: str) -> str:
    return didkey.did_of(hashlib.sha256(name.encode()).digest())


def nostr_hex(name: str) -> str:
    return hashlib.sha256(b"nostr" + name.encode()).hexdigest()


def nostr(name: str) -> str:
    return f"nostr:{nostr_hex(name)}"


PUBLISHER = did("publisher")
APP = AppName(PUBLISHER, "hello")
SUBJECT = Digest("ab" * 32)
OLDER = Digest("cd" * 32)


def listing(
    *flags: Flag,
    app: AppName = APP,
    with_release: bool = True,
    head_epoch: int | None = 1,
    head_expires: int | None = NOW + 90 * DAY,
) -> Listing:
    release = Release(app, "1.0.0", 1, SUBJECT, {}, ("https://origin.example",))
    return Listing(
        app=app,
        title="Hello",
        summary="Says hello",
        categories=(),
        homepage="",
        release=release if with_release else None,
        head_epoch=head_epoch,
        head_expires=head_expires,
        nostr_pubkeys=(),
        flags=flags,
    )


def evidence(
    follows: Iterable[tuple[str, str]] = (),
    votes: Iterable[Attestation] = (),
    bound: Mapping[str, str] | None = None,
) -> TrustEvidence:
    return TrustEvidence(tuple(follows), tuple(votes), bound or {})


def vote(
    voter: str,
    kind: AttestKind = AttestKind.REVIEWED,
    value: int = 100,
    *,
    made: int = NOW - DAY,
    expires: int | None = None,
    subject: Digest = SUBJECT,
    app: AppName = APP,
) -> Attestation:
    return Attestation(voter, app, subject, kind, value, made, expires)
