"""What this node learned by itself and must not forget: releases whose parts did not match, signers, days of running.

Guarantees that it survives a kill whole (see `files`), that it is bounded, and that a damaged file is a fault and never
"nothing was found". It is no part of the index: that may be thrown away and filled again from relays, this may not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Final

import msgspec
from msgspec import Meta

from market.errors import Problem
from market.model import Digest, SignedBy
from market.trust.files import read_bounded, replace_whole

MAX_BROKEN: Final = 2_000
"""Releases remembered as broken; the oldest go. Each needed an install that the operator asked for."""

MAX_SIGNERS: Final = 2_000
"""Signers remembered, of apps that were installed or pinned here."""

MAX_TEXT: Final = 400
MAX_FILE: Final = 4 * 1024 * 1024
"""Bytes: both tables full are under 3 MiB."""

_Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Text = Annotated[str, Meta(max_length=MAX_TEXT)]


class DamagedMemory(Problem):
    """The file can not be read as one. Nothing is judged without it."""

    kind: ClassVar[str] = "damaged-memory"


@dataclass(frozen=True, slots=True)
class KnownSigner:
    """Who signed an app that was installed or pinned here."""

    app: str
    """The app's id; whose it is, `signed` says."""
    signed: SignedBy
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Ran:
    """How long a release was seen running, and the day count that was last attested."""

    seconds: int = 0
    attested: int = 0


@dataclass(frozen=True, slots=True)
class Remembered:
    """The memory as a value; every change makes a new one."""

    broken: Mapping[str, _Text] = field(default_factory=dict)
    """Release digest -> what was found, oldest first."""
    signers: tuple[KnownSigner, ...] = ()
    ran: Mapping[str, Ran] = field(default_factory=dict)

    def broken_releases(self) -> dict[Digest, str]:
        """As the digest gate takes it."""
        return {Digest(digest): text for digest, text in self.broken.items()}

    def signer_of(self, app: str, publisher: str) -> SignedBy | None:
        """Who signed that publisher's app; else whoever signed, or was pinned for, another of the same id."""
        known = [one for one in self.signers if one.app == app]
        pinned = [one for one in known if one.pinned and one.signed.publisher != publisher]
        own = [one for one in known if one.signed.publisher == publisher]
        found = (pinned if not own or not own[0].pinned else []) or own or known
        return found[-1].signed if found else None

    def with_broken(self, release: Digest, text: str) -> Remembered:
        kept = {digest: said for digest, said in self.broken.items() if digest != release.hex}
        newest = list({**kept, release.hex: text[:MAX_TEXT]}.items())[-MAX_BROKEN:]
        return replace(self, broken=dict(newest))

    def with_signer(self, known: KnownSigner) -> Remembered:
        """A pin stays a pin when the app is installed again."""
        before = next((one for one in self.signers if _same(one, known)), None)
        added = replace(known, pinned=known.pinned or (before is not None and before.pinned))
        kept = tuple(one for one in self.signers if not _same(one, known))
        return replace(self, signers=(*kept, added)[-MAX_SIGNERS:])

    def without_signer(self, app: str, publisher: str) -> Remembered:
        kept = tuple(one for one in self.signers if (one.app, one.signed.publisher) != (app, publisher))
        return replace(self, signers=kept)

    def with_ran(self, ran: Mapping[str, Ran]) -> Remembered:
        return replace(self, ran=dict(ran))


def _same(one: KnownSigner, other: KnownSigner) -> bool:
    return (one.app, one.signed.publisher) == (other.app, other.signed.publisher)


class TrustMemory:
    """The memory in a file. One process owns it: the one that holds the home's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: Remembered | None = None

    def load(self) -> Remembered:
        """Reads the file once. Raises DamagedMemory."""
        if self._known is None:
            self._known = self._read()
        return self._known

    def save(self, remembered: Remembered) -> None:
        """Durable when it returns."""
        replace_whole(self.path, {"schema": 1, **msgspec.to_builtins(remembered)})
        self._known = remembered

    def _read(self) -> Remembered:
        try:
            raw = read_bounded(self.path, MAX_FILE)
            if raw is None:
                return Remembered()
            form = msgspec.json.decode(raw, type=_Form)
        except (ValueError, RecursionError) as error:
            raise DamagedMemory(
                "what this node remembers can not be read",
                where=str(self.path),
                remedy="move it aside; pins and broken releases have to be learned again",
            ) from error
        return Remembered(form.broken, form.signers, form.ran)


class _Form(msgspec.Struct, forbid_unknown_fields=True):
    schema: Annotated[int, Meta(ge=1, le=1)]
    broken: dict[_Hex, _Text]
    signers: Annotated[tuple[KnownSigner, ...], Meta(max_length=MAX_SIGNERS)]
    ran: dict[_Hex, Ran]
