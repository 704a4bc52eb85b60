"""The private keys of one publisher or node, and what they sign.

Guarantees that a document is signed only by a key to which the newest entry of the key history gives the role, and that
no private byte appears in a message. Each key is a file of its own: `inception.key` and `next-root.key` can be taken
offline after `create`, and everything that a running node needs still works.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from coincurve import PrivateKey as SchnorrKey
from coincurve import PublicKeyXOnly
from msgspec import Meta
from nacl.signing import SigningKey

from apps.names import Digest
from market.errors import EnvironmentLacks, Problem, Refused
from market.identity import nip19
from market.identity.didkey import decode_private, decode_public, did_of, encode_private
from market.identity.forms import MAX_WRITE_RELAYS, BadDocument, RelayText, is_relay_address, strictly
from market.identity.history import Folded, KeyHistory, Role, SignedEntry, identity_body
from market.identity.ledger import Ledger
from market.identity.private_files import (
    NoSuchFile,
    cannot_write,
    is_free,
    read_private,
    require_private_folder,
    sync_folder,
    write_private,
)
from market.identity.proofs import add_proof

INCEPTION: Final = "inception.key"
NOSTR: Final = "nostr.key"
HISTORY: Final = "history.json"
ROTATION: Final = "rotation.json"
FILE_OF: Final[Mapping[Role, str]] = {
    Role.ROOT: "next-root.key",
    Role.RELEASE: "release.key",
    Role.ONLINE: "online.key",
}


class KeyNotHere(Problem):
    """The key for this role is not on this machine."""

    kind = "key-not-here"


class DamagedKey(Problem):
    """A key file or the history beside it does not hold what it should."""

    kind = "damaged-key"


@dataclass(frozen=True, slots=True)
class Change:
    """What a rotation does besides replacing the root key, which it always does."""

    roles: frozenset[Role] = frozenset()
    """Roles whose keys are made anew; all older keys of these roles lose them."""
    nostr: bool = False
    relays: tuple[str, ...] | None = None
    """Write relays from now on; None keeps them."""
    also_release: tuple[bytes, ...] = ()
    """Raw public keys of other machines that get the role too."""
    also_online: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Keyring:
    """One identity on disk: `did`, the Nostr key, the documents of its history, and the ledger of used numbers."""

    folder: Path
    history: KeyHistory
    documents: tuple[dict[str, Any], ...]
    """The identity documents, oldest first, as they are published."""
    nostr_pubkey: str
    """x-only public key, hex."""
    ledger: Ledger
    _nostr: SchnorrKey = field(repr=False)

    @classmethod
    def create(cls, folder: Path, *, now: float | None = None, relays: Sequence[str] = ()) -> Keyring:
        """Make all keys and entry 0 in a new folder, whole or not at all. `now` in Unix seconds, the clock's if absent.

        Raises Refused when the folder has files in it already, EnvironmentLacks when the place can not be written.
        """
        if not is_free(folder):
            raise Refused(
                "there is an identity here already",
                where=str(folder),
                remedy="`archy id show` has it; choose another --home for another one",
            )
        checked_relays(relays)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".identity-", dir=folder.parent))
        except OSError as error:
            raise EnvironmentLacks(
                f"can not be written: {error.strerror}", where=str(folder), remedy="choose another --home"
            ) from error
        try:
            _write_new(staging, int(time.time() if now is None else now), tuple(relays))
            os.rename(staging, folder)  # rename(2): refuses a folder that came to be meanwhile and has files in it
            sync_folder(folder.parent)
        except OSError as error:
            raise EnvironmentLacks(f"can not be written: {error.strerror}", where=str(folder)) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> Keyring:
        """The identity in the folder; a rotation that a kill cut short is finished first.

        Raises LaxPermissions, NoSuchFile, DamagedKey, EnvironmentLacks.
        """
        require_private_folder(folder)
        if not (folder / ROTATION).exists():
            try:
                return cls._loaded(folder)
            except DamagedKey:
                if not os.access(folder, os.W_OK):
                    raise
        # Alone, for another process may be rotating: what was read can be half old and half new, and what this one
        # would write again can by then be older than what is there.
        with Ledger(folder).locked():
            return cls.load_alone(folder)

    @classmethod
    def load_alone(cls, folder: Path) -> Keyring:
        """As `load`, for who holds the folder's lock already."""
        finish_rotation(folder)
        return cls._loaded(folder)

    @classmethod
    def _loaded(cls, folder: Path) -> Keyring:
        documents = _read_history(folder / HISTORY)
        history = _folded(documents, folder / HISTORY)
        secret = _read_nostr_key(folder / NOSTR)
        public = nostr_public(secret)
        if public not in history.entries[-1].entry.nostr:
            raise DamagedKey(
                "this is not a Nostr key of the newest history entry",
                where=str(folder / NOSTR),
                remedy="restore it from a backup",
            )
        return cls(folder, history, documents, public, Ledger(folder), secret)

    @property
    def did(self) -> str:
        return self.history.did

    @property
    def npub(self) -> str:
        """The Nostr key for people (NIP-19)."""
        return nip19.encode("npub", bytes.fromhex(self.nostr_pubkey))

    @property
    def current(self) -> SignedEntry:
        """The newest entry of the key history: what documents are signed under."""
        return self.history.entries[-1]

    @property
    def identity_digest(self) -> Digest:
        return self.current.digest

    def keys_here(self) -> tuple[str, ...]:
        """Which private keys are on this machine: `inception`, `next-root`, `release`, `online`, `nostr`."""
        names = (INCEPTION, *FILE_OF.values(), NOSTR)
        return tuple(name.removesuffix(".key") for name in names if (self.folder / name).exists())

    def identity_document(self) -> dict[str, Any]:
        """The newest identity document, signed."""
        return self.documents[-1]

    def sign(self, document: Mapping[str, Any], role: Role, *, now: float) -> dict[str, Any]:
        """The document with a proof by this machine's key for the role; `now` in Unix seconds.

        Raises KeyNotHere, LaxPermissions, DamagedKey, NotCanonical, or Refused for another publisher's document.
        """
        if document.get("publisher") != self.did or document.get("identity") != self.identity_digest.hex:
            raise Refused("not a document of this identity's newest entry", where=str(document.get("type")))
        return add_proof(document, self._seed(role), created=int(now))

    def sign_schnorr(self, digest: bytes) -> bytes:
        """64 bytes of BIP-340 signature over a 32-byte event id, by the Nostr key."""
        return self._nostr.sign_schnorr(digest)

    def reserve(self, kind: str, name: str, *, above: int = 0) -> int:
        """Durably take the next seq or epoch for (kind, name) before signing. `above`: the highest known elsewhere."""
        return self.ledger.reserve(kind, name, above=above)

    def rotate(self, change: Change, *, now: float, known: KeyHistory | None = None) -> Keyring:
        """Append an entry to the key history, signed by the key that the newest one committed to.

        `known` is the history as relays show it; `now` in Unix seconds. Returns the keyring as it is then. Raises
        KeyNotHere while the next root key is offline, Refused when this folder is behind `known` (signing would fork
        the history), EnvironmentLacks, BadDocument.
        """
        with self.ledger.locked():
            fresh = Keyring.load_alone(self.folder)
            _refuse_fork(fresh, known)
            rotation = fresh._rotation(change, int(now))
            decide(self.folder, rotation)
            return Keyring.load_alone(self.folder)

    def planned(self, change: Change, *, now: float) -> dict[str, Any]:
        """An entry as `rotate` would append it; its keys are made, and thrown away. Raises what `rotate` raises."""
        return self._rotation(change, int(now)).history[-1]

    def _rotation(self, change: Change, now: int) -> Rotation:
        root = self._seed(Role.ROOT)
        entry, files, keys = self.current.entry, {}, {Role.ROOT: SigningKey.generate()}
        nostr = entry.nostr
        for role in change.roles - {Role.ROOT}:
            keys[role] = SigningKey.generate()
        for role, key in keys.items():
            files[FILE_OF[role]] = key_line(key)
        if change.nostr:
            secret = SchnorrKey()
            files[NOSTR], nostr = nostr_line(secret), (nostr_public(secret),)
        body = identity_body(
            self.did,
            prev=self.current,
            next_root=keys[Role.ROOT].verify_key.encode(),
            release=_in_force(entry.keys.release, keys.get(Role.RELEASE), change.also_release),
            online=_in_force(entry.keys.online, keys.get(Role.ONLINE), change.also_online),
            nostr=nostr,
            relays=entry.relays if change.relays is None else checked_relays(change.relays),
            made=max(now, entry.made + 1),
        )
        document = add_proof(body, root, created=now)
        SignedEntry.from_document(document)  # what readers would refuse is not written
        return Rotation([*self.documents, document], files)

    def _seed(self, role: Role) -> bytes:
        path = self.folder / FILE_OF[role]
        try:
            seed = _ed25519_seed(path)
        except NoSuchFile as error:
            raise KeyNotHere(
                f"the {role} key is not on this machine", where=str(path), remedy="sign where the key is kept"
            ) from error
        if not self.history.holds(SigningKey(seed).verify_key.encode(), role, self.current):
            raise DamagedKey(f"this is not the {role} key of the newest history entry", where=str(path))
        return seed


def _in_force(before: Sequence[str], new: SigningKey | None, also: Sequence[bytes]) -> tuple[bytes, ...]:
    """A new key takes the place of every older one: a rotation is how a stolen key loses its role."""
    kept = [decode_public(text) for text in before] if new is None else [new.verify_key.encode()]
    return tuple(dict.fromkeys([*kept, *also]))


def _refuse_fork(keyring: Keyring, known: KeyHistory | None) -> None:
    for ours, theirs in zip_longest(keyring.history.entries, known.entries if known else ()):
        if theirs is not None and (ours is None or ours.digest != theirs.digest):
            raise Refused(
                f"entry {theirs.entry.seq} of the history that relays show is not in this folder",
                where=str(keyring.folder),
                remedy="import the newest export of this identity first; rotating here would fork its history",
            )


class _Relays(msgspec.Struct, forbid_unknown_fields=True):
    relays: Annotated[tuple[RelayText, ...], Meta(max_length=MAX_WRITE_RELAYS)]


def checked_relays(relays: Sequence[str]) -> tuple[str, ...]:
    """Write relays as an identity entry takes them. Raises BadDocument."""
    for relay in relays:
        if not is_relay_address(relay):
            raise BadDocument("not a relay's address", where=relay[:80], remedy="use wss://HOST or ws://HOST:PORT")
    return strictly({"relays": list(relays)}, _Relays).relays


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    """A change of keys that is decided: the whole history after it, and the whole text of each key file it writes."""

    history: list[dict[str, Any]]
    files: dict[str, str]


def finish_rotation(folder: Path) -> None:
    """Carry out what `rotation.json` says, if it is there.

    The order of writes: that file is whole on disk before anything else changes, and goes last. A kill at any moment
    leaves either the old identity or one that the next load finishes; doing it twice changes nothing.
    """
    path = folder / ROTATION
    try:
        rotation = msgspec.json.decode(read_private(path), type=Rotation)
    except NoSuchFile:
        return
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedKey("not a rotation", where=str(path), remedy="restore it from a backup") from error
    if set(rotation.files) - {INCEPTION, *FILE_OF.values(), NOSTR}:
        raise DamagedKey("a rotation writes key files only", where=str(path), remedy="restore it from a backup")
    for name, text in rotation.files.items():
        write_private(folder / name, text.encode())
    write_private(folder / HISTORY, msgspec.json.encode(rotation.history, order="sorted"))
    try:
        path.unlink()
        sync_folder(folder)
    except OSError as error:
        raise cannot_write(path, error) from error


def decide(folder: Path, rotation: Rotation) -> None:
    """From here on the rotation happens; `Keyring.load` carries it out."""
    write_private(folder / ROTATION, msgspec.json.encode(rotation, order="sorted"))


def key_line(key: SigningKey) -> str:
    """The text of an Ed25519 key file."""
    return encode_private(key.encode()) + "\n"


def nostr_line(key: SchnorrKey) -> str:
    """The text of a Nostr key file (NIP-19 nsec)."""
    return nip19.encode("nsec", key.secret) + "\n"


def nostr_public(key: SchnorrKey) -> str:
    """x-only public key, hex."""
    return PublicKeyXOnly.from_secret(key.secret).format().hex()


def _write_new(folder: Path, made: int, relays: tuple[str, ...]) -> None:
    inception = SigningKey.generate()
    keys = {role: SigningKey.generate() for role in Role}
    nostr = SchnorrKey()
    body = identity_body(
        did_of(inception.verify_key.encode()),
        prev=None,
        next_root=keys[Role.ROOT].verify_key.encode(),
        release=(keys[Role.RELEASE].verify_key.encode(),),
        online=(keys[Role.ONLINE].verify_key.encode(),),
        nostr=(nostr_public(nostr),),
        relays=relays,
        made=made,
    )
    document = add_proof(body, inception.encode(), created=made)
    for name, key in ((INCEPTION, inception), *((FILE_OF[role], key) for role, key in keys.items())):
        write_private(folder / name, key_line(key).encode("ascii"))
    write_private(folder / NOSTR, nostr_line(nostr).encode("ascii"))
    write_private(folder / HISTORY, msgspec.json.encode([document], order="sorted"))


def _read_history(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        documents = msgspec.json.decode(read_private(path), type=tuple[dict[str, Any], ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedKey("not a key history", where=str(path), remedy="restore it from a backup") from error
    if not documents:
        raise DamagedKey("the key history is empty", where=str(path), remedy="restore it from a backup")
    return documents


def _folded(documents: Sequence[Mapping[str, Any]], path: Path) -> KeyHistory:
    try:
        entries = [SignedEntry.from_document(document) for document in documents]
    except Refused as error:
        raise DamagedKey(
            f"not a key history: {error.what}", where=str(path), remedy="restore it from a backup"
        ) from error
    history = KeyHistory(entries[0].entry.publisher)
    for entry in entries:
        history, outcome = history.fold(entry)
        if outcome is not Folded.ADDED:
            raise DamagedKey(
                f"an entry of the history is {outcome.value}", where=str(path), remedy="restore it from a backup"
            )
    return history


def _ed25519_seed(path: Path) -> bytes:
    try:
        return decode_private(read_private(path).decode("ascii").strip())
    except (Refused, UnicodeDecodeError) as error:
        if isinstance(error, Refused) and error.kind != "bad-key":
            raise
        raise DamagedKey("not an Ed25519 key file", where=str(path), remedy="restore it from a backup") from None


def nostr_key(text: str) -> SchnorrKey:
    """The Nostr key of a key file's text. Raises ValueError, which never quotes the text."""
    try:
        return SchnorrKey(nip19.decode("nsec", text.strip()))
    except ValueError:  # from None: what went wrong could quote the text, and the text is the key
        raise ValueError("not a Nostr key (nsec1...)") from None


def _read_nostr_key(path: Path) -> SchnorrKey:
    try:
        return nostr_key(read_private(path).decode("ascii"))
    except ValueError:
        raise DamagedKey(
            "not a Nostr key file (nsec1...)", where=str(path), remedy="restore it from a backup"
        ) from None
