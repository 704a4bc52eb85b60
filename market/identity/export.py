"""An identity as one encrypted file: what leaves a machine, and what comes back.

Guarantees that an export holds no readable secret (Argon2id, RFC 9106, and XSalsa20-Poly1305 by way of libsodium), that
an import is whole or absent, never replaces another identity, and never lets a number be used twice. Refuses to know
where a passphrase comes from.
"""

from __future__ import annotations

import shutil
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox
from nacl.signing import SigningKey
from nacl.utils import random as random_bytes

from market.errors import EnvironmentLacks, Refused, UsageProblem
from market.identity.didkey import decode_private, did_of
from market.identity.forms import FORMAT
from market.identity.history import Folded, KeyHistory, Role, SignedEntry
from market.identity.keyring import (
    FILE_OF,
    HISTORY,
    INCEPTION,
    NOSTR,
    Keyring,
    Rotation,
    decide,
    nostr_key,
    nostr_public,
)
from market.identity.ledger import Ledger, LedgerState
from market.identity.private_files import MAX_FILE_SIZE, is_free, read_private, sync_folder

MIN_PASSPHRASE: Final = 12
"""Characters. Argon2id makes a guess cost half a second; a short word is guessed all the same."""

MAX_EXPORT_SIZE: Final = 2 * MAX_FILE_SIZE
"""Bytes of an export: keys, a history and a ledger, each bounded, in base64."""

MAX_MEMORY: Final = argon2id.MEMLIMIT_SENSITIVE
"""Bytes (1 GiB) that a file may make the key derivation take. An export from a stranger could ask for all there is."""
MAX_ROUNDS: Final = 16


class Keys(StrEnum):
    """Which keys an export holds. Each also holds the history, which is public."""

    ALL = "all"
    OFFLINE = "offline"
    """The inception and next-root keys: for a drawer."""
    DAILY = "daily"
    """Release, online and Nostr keys and the ledger: for the machine that signs."""
    ONLINE = "online"
    """The online and Nostr keys and the ledger: for a server that refreshes heads."""


_FILES: Final[dict[Keys, tuple[str, ...]]] = {
    Keys.ALL: (INCEPTION, *FILE_OF.values(), NOSTR),
    Keys.OFFLINE: (INCEPTION, FILE_OF[Role.ROOT]),
    Keys.DAILY: (FILE_OF[Role.RELEASE], FILE_OF[Role.ONLINE], NOSTR),
    Keys.ONLINE: (FILE_OF[Role.ONLINE], NOSTR),
}


class BadExport(Refused):
    """The file is no export, or the passphrase does not open it; which of both can not be told."""

    kind = "bad-export"


class _Sealed(msgspec.Struct, forbid_unknown_fields=True):
    archy: Annotated[int, Meta(ge=FORMAT, le=FORMAT)]
    type: Annotated[str, Meta(pattern=r"^export\Z")]
    kdf: Annotated[str, Meta(pattern=r"^argon2id\Z")]
    rounds: Annotated[int, Meta(ge=1, le=MAX_ROUNDS)]
    memory: Annotated[int, Meta(ge=8192, le=MAX_MEMORY)]
    salt: bytes
    box: bytes


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    did: str
    history: list[dict[str, Any]]
    files: dict[str, str]
    ledger: LedgerState | None = None


def export_identity(
    keyring: Keyring,
    passphrase: str,
    keys: Keys = Keys.ALL,
    *,
    rounds: int = argon2id.OPSLIMIT_MODERATE,
    memory: int = argon2id.MEMLIMIT_MODERATE,
) -> bytes:
    """The sealed file's bytes. `memory` in bytes; the defaults cost 256 MiB and half a second for every guess.

    Raises UsageProblem for a short passphrase, NoSuchFile when a key that belongs in it is not on this machine.
    """
    if len(passphrase) < MIN_PASSPHRASE:
        raise UsageProblem(f"a passphrase has at least {MIN_PASSPHRASE} characters", remedy="take four random words")
    files = {name: read_private(keyring.folder / name).decode("ascii") for name in _present(keyring.folder, keys)}
    ledger = None if keys is Keys.OFFLINE else keyring.ledger.state()
    content = msgspec.json.encode(_Content(keyring.did, list(keyring.documents), files, ledger))
    salt = random_bytes(argon2id.SALTBYTES)
    box = _box(passphrase, salt, rounds, memory).encrypt(content)
    return msgspec.json.encode(_Sealed(FORMAT, "export", "argon2id", rounds, memory, salt, bytes(box))) + b"\n"


def import_identity(data: bytes, passphrase: str, folder: Path) -> Keyring:
    """Put an export's keys into the folder: a new one, or one of the same identity, which gains what it lacks.

    Numbers go on well above all that either side has used. Blocks for the key derivation. Raises BadExport, Refused
    (another identity, another history, or only offline keys where there is no identity yet), EnvironmentLacks.
    """
    content = _opened(data, passphrase)
    if (folder / HISTORY).exists():
        return _merge(content, Keyring.load(folder))
    if NOSTR not in content.files:
        raise Refused(
            "the export holds only the offline keys",
            where=str(folder),
            remedy=f"import one made with --keys {Keys.ALL} or {Keys.DAILY} first",
        )
    return _create(content, folder)


def _create(content: _Content, folder: Path) -> Keyring:
    _check(content)
    if not is_free(folder):
        raise Refused("the folder has other files in it", where=str(folder), remedy="choose another --home")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".identity-", dir=folder.parent))
    except OSError as error:
        raise EnvironmentLacks(f"can not be written: {error.strerror}", where=str(folder)) from error
    try:
        decide(staging, Rotation(content.history, content.files))
        if content.ledger is not None:
            Ledger(staging).merge(content.ledger)
        loaded = Keyring.load(staging)
        if loaded.did != content.did:
            raise BadExport("the export's history is another publisher's")
        staging.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise EnvironmentLacks(f"can not be written: {error.strerror}", where=str(folder)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Keyring.load(folder)


def _merge(content: _Content, kept: Keyring) -> Keyring:
    if content.did != kept.did:
        raise Refused(f"the export is of {content.did}", where=str(kept.folder), remedy="choose another --home")
    _check(content)
    _joined(content, kept)  # what is refused is refused before anything changes
    if content.ledger is not None:
        kept.ledger.merge(content.ledger)  # before the keys: a kill in between must not leave them with low numbers
    with kept.ledger.locked():
        decide(kept.folder, _joined(content, Keyring.load_alone(kept.folder)))
        return Keyring.load_alone(kept.folder)


def _joined(content: _Content, kept: Keyring) -> Rotation:
    """The longer of both histories, and the keys of its newest entry that this folder lacks."""
    theirs, ours = content.history, list(kept.documents)
    longest = max(theirs, ours, key=len)
    if longest[: len(theirs)] != theirs or longest[: len(ours)] != ours:
        raise Refused(
            "the export continues another key history than this folder",
            where=str(kept.folder),
            remedy="keep both; `archy publisher show` says which of them relays know",
        )
    newest = SignedEntry.from_document(longest[-1])
    files = {
        name: text
        for name, text in content.files.items()
        if _fits(name, text, newest, content.did) and (len(theirs) > len(ours) or not (kept.folder / name).exists())
    }
    if NOSTR not in files and kept.nostr_pubkey not in newest.entry.nostr:
        raise Refused(
            "the export's history has another Nostr key, which is neither in it nor here",
            where=str(kept.folder),
            remedy=f"import one made with --keys {Keys.ALL} or {Keys.DAILY} first",
        )
    return Rotation(longest, files)


def _check(content: _Content) -> None:
    """Raises BadExport unless this is a history and keys: what is written over an identity is looked at before."""
    history, outcome = KeyHistory(content.did), Folded.ADDED
    try:
        for document in content.history:
            if outcome is Folded.ADDED:
                history, outcome = history.fold(SignedEntry.from_document(document))
        for name, text in content.files.items():
            nostr_key(text) if name == NOSTR else decode_private(text.strip())
    except Refused as error:
        raise BadExport(f"the export is damaged: {error.what}") from error
    except ValueError:  # from None: what went wrong could quote the text, and the text is a key
        raise BadExport("the export is damaged: its Nostr key is none") from None
    if outcome is not Folded.ADDED:
        raise BadExport(f"the export is damaged: an entry of its history is {outcome.value}")


def _fits(name: str, text: str, newest: SignedEntry, did: str) -> bool:
    """Whether the newest entry knows this key: one from before a rotation must not take a newer one's place."""
    if name == NOSTR:
        return nostr_public(nostr_key(text)) in newest.entry.nostr
    public = SigningKey(decode_private(text.strip())).verify_key.encode()
    if name == INCEPTION:
        return did_of(public) == did
    role = next(role for role, file in FILE_OF.items() if file == name)
    return KeyHistory(did).holds(public, role, newest)


def _opened(data: bytes, passphrase: str) -> _Content:
    if len(data) > MAX_EXPORT_SIZE:
        raise BadExport(f"larger than the {MAX_EXPORT_SIZE} bytes of the largest export")
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        box = _box(passphrase, sealed.salt, sealed.rounds, sealed.memory)
        content = msgspec.json.decode(box.decrypt(sealed.box), type=_Content)
    except MemoryError as error:
        raise EnvironmentLacks(
            f"the passphrase can not be tried without {sealed.memory >> 20} MiB of memory", remedy="end other programs"
        ) from error
    except CryptoError as error:
        raise BadExport("the passphrase does not open it", remedy="try again; nothing was changed") from error
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise BadExport("not an export of an identity") from error
    if not content.history or set(content.files) - {INCEPTION, *FILE_OF.values(), NOSTR}:
        raise BadExport("not an export of an identity")
    return content


def _box(passphrase: str, salt: bytes, rounds: int, memory: int) -> SecretBox:
    return SecretBox(argon2id.kdf(SecretBox.KEY_SIZE, passphrase.encode(), salt, rounds, memory))


def _present(folder: Path, keys: Keys) -> list[str]:
    """The files that belong in such an export. Keys that were taken offline are left out of `all`, and only of that."""
    return [name for name in _FILES[keys] if keys is not Keys.ALL or (folder / name).exists()]
