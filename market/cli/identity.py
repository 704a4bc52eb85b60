"""Commands for one's own identity: make it, show it, rotate and revoke its keys, carry it to another machine.

A passphrase comes from a prompt, a file or an open descriptor, never from an argument that other users could list.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from market.cli.options import Group, consent_of, json_option
from market.cli.publishing import check_addresses, chosen_relays, own_index, publish_documents, publishing_options
from market.cli.session import Session
from market.cli.text import safe
from market.errors import EnvironmentLacks, UsageProblem

if TYPE_CHECKING:
    from market.identity import Keyring

MAX_PASSPHRASE: Final = 1024
"""Bytes read of a passphrase file; a longer one is the wrong file."""

F = TypeVar("F", bound=Callable[..., Any])


def register(root: click.Group) -> None:
    """Add this module's commands."""
    root.add_command(identity)


@click.group("id", cls=Group)
def identity() -> None:
    """Your publisher's identity: a DID, its key history and a Nostr key."""


@identity.command("init")
@click.option(
    "--write-relay", "relays", multiple=True, metavar="URL", help="Where you will publish; readers ask there."
)
@json_option
@click.pass_obj
def id_init(session: Session, relays: tuple[str, ...]) -> None:
    """Make the inception, next-root, release and online keys, a Nostr key, and entry 0 of the key history."""
    from market.identity import Keyring

    check_addresses("--write-relay", relays)
    session.home.create()
    session.show(_json(session, Keyring.create(session.home.identity, relays=relays)), _text)


@identity.command("show")
@json_option
@click.pass_obj
def id_show(session: Session) -> None:
    """This home's DID, Nostr key and key history, and which private keys are on this machine."""
    session.show(_json(session, _load(session)), _text)


@identity.command("rotate", epilog="Example: archy id rotate --role release --relay wss://relay.example")
@click.option("--role", "roles", multiple=True, type=click.Choice(["release", "online"]), help="Make these keys anew.")
@click.option("--nostr", is_flag=True, help="Make the Nostr key anew, too; publish your apps again afterwards.")
@click.option("--write-relay", "write_relays", multiple=True, metavar="URL", help="Replace the write relays.")
@click.option("--add-online", multiple=True, metavar="z6Mk...", help="Another machine's key that may sign heads.")
@click.option("--add-release", multiple=True, metavar="z6Mk...", help="Another machine's key that may sign releases.")
@publishing_options
@json_option
@click.pass_context
def id_rotate(
    context: click.Context,
    /,
    roles: tuple[str, ...],
    nostr: bool,
    write_relays: tuple[str, ...],
    add_online: tuple[str, ...],
    add_release: tuple[str, ...],
    **options: Any,
) -> None:
    """Append an entry to the key history, signed by the next-root key; publish it with a fresh head of every app."""
    from market.discovery import refreshed_heads
    from market.identity import Change, Role

    session: Session = context.obj
    check_addresses("--write-relay", write_relays)
    keyring = _load(session)
    change = Change(
        roles=frozenset(Role(role) for role in roles),
        nostr=nostr,
        relays=write_relays or None,
        also_release=tuple(_public("--add-release", text) for text in add_release),
        also_online=tuple(_public("--add-online", text) for text in add_online),
    )
    planned = keyring.planned(change, now=time.time())  # a change that can not be is told before anything else
    urls = chosen_relays(session, keyring, also=write_relays, relays=options.pop("relays"), **options)
    with own_index(session.home) as index:
        if not options["dry_run"]:
            keyring = keyring.rotate(change, now=time.time(), known=index.identity(keyring.did))
        documents = refreshed_heads(keyring, index, keyring.ledger.apps(), now=time.time())
    if options["dry_run"]:
        documents.insert(len(keyring.documents), planned)
    extra = {"did": keyring.did, "npub": keyring.npub}
    again = "the keys are rotated, and `archy app refresh` offers the new entry again; rotate no second time"
    publish_documents(context, keyring, documents, urls, extra=extra, again=again, **options)


def _public(option: str, text: str) -> bytes:
    from market.identity import BadKey, public_key

    try:
        return public_key(text)
    except BadKey as error:
        raise UsageProblem(
            "not an Ed25519 public key", where=f"{option} {text[:64]}", remedy="`archy id show` there has it: z6Mk..."
        ) from error


@identity.command("revoke", epilog="Example: archy id revoke z6Mk... --last hello=12 --reason stolen")
@click.argument("key")
@click.option(
    "--last", "lasts", multiple=True, metavar="APP=SEQ", help="The last number of the app that is still valid."
)
@click.option("--reason", default="", help="One sentence for people.")
@click.option("--yes", is_flag=True, help="Do not ask. A revocation can not be taken back.")
@publishing_options
@json_option
@click.pass_context
def id_revoke(
    context: click.Context, /, key: str, lasts: tuple[str, ...], reason: str, yes: bool, **options: Any
) -> None:
    """Withdraw, for good, all that a release or online key signed after the numbers named. Needs the next-root key.

    Of an app that no --last names, everything that the key signed is withdrawn.
    """
    from market.discovery import sign_key_revocation

    session: Session = context.obj
    keyring = _load(session)
    known = {text for entry in keyring.history.entries for keys in (entry.entry.keys.release, entry.entry.keys.online)
             for text in keys}  # fmt: skip
    if key not in known:
        raise UsageProblem("not a key of this identity's history", where=key[:64], remedy="archy id show")
    last = dict(_last(word) for word in lasts)
    urls = chosen_relays(session, keyring, relays=options.pop("relays"), **options)
    if not options["dry_run"]:
        kept = ", ".join(f"{app} up to {number}" for app, number in last.items()) or "nothing"
        consent_of(f"Withdraw for good all that {key} signed, except {kept}?", yes=yes)
    revocation = sign_key_revocation(keyring, key, last, reason=reason, now=time.time())
    documents = [*keyring.documents, revocation]
    again = "run it again; saying it twice is harmless"
    publish_documents(context, keyring, documents, urls, extra={"did": keyring.did}, again=again, **options)


def _last(word: str) -> tuple[str, int]:
    """Sixteen digits hold every number that a document may have."""
    found = re.fullmatch(r"([a-z0-9][a-z0-9-]{1,38})=([0-9]{1,16})", word)
    if found is None:
        raise UsageProblem("not APP=SEQ", where=f"--last {word[:80]}", remedy="for example --last hello=12")
    return found[1], int(found[2])


def _passphrase_options(command: F) -> F:
    for option in (
        click.option("--passphrase-fd", type=click.IntRange(0, 255), help="Read it from this open file descriptor."),
        click.option("--passphrase-file", type=click.Path(path_type=Path, dir_okay=False), help="Read it from a file."),
    ):
        command = option(command)
    return command


@identity.command("export", epilog="Example: archy id export drawer.archy --keys offline")
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--keys", type=click.Choice(["all", "offline", "daily", "online"]), default="all", show_default=True)
@_passphrase_options
@json_option
@click.pass_obj
def id_export(
    session: Session, target: Path, keys: str, passphrase_file: Path | None, passphrase_fd: int | None
) -> None:
    """Write the identity, or some of its keys, as one file that only the passphrase opens. Nothing is overwritten."""
    from market.identity import Keys, export_identity

    keyring = _load(session)
    if target.exists():
        raise UsageProblem("is there already", where=str(target), remedy="choose another name; nothing is overwritten")
    data = export_identity(keyring, _passphrase(passphrase_file, passphrase_fd, twice=True), Keys(keys))
    _write_new(target, data)
    session.show(
        {"schema": "archy/exported/1", "did": keyring.did, "keys": keys, "file": str(target)},
        lambda r: (
            f"{r['did']}: {r['keys']} keys are in {safe(r['file'])}. Try the passphrase once before you rely on it."
        ),
    )


def _write_new(target: Path, data: bytes) -> None:
    """Whole and on disk, or not there."""
    try:
        with open(target, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                target.unlink()
                raise
    except OSError as error:
        raise EnvironmentLacks(
            f"can not be written: {error.strerror}", where=str(target), remedy="make room, or choose another place"
        ) from error


@identity.command("import", epilog="Example: archy --home /new/home id import drawer.archy")
@click.argument("source", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_passphrase_options
@json_option
@click.pass_obj
def id_import(session: Session, source: Path, passphrase_file: Path | None, passphrase_fd: int | None) -> None:
    """Bring keys from an export into this home; never over another identity, and never to a number used before."""
    from market.discovery import never_behind
    from market.identity import MAX_EXPORT_SIZE, BadExport, import_identity

    try:
        with source.open("rb") as file:
            data = file.read(MAX_EXPORT_SIZE + 1)
    except OSError as error:
        raise UsageProblem(f"can not be read: {error.strerror}", where=str(source)) from error
    passphrase = _passphrase(passphrase_file, passphrase_fd, twice=False)
    session.home.create()
    try:
        keyring = import_identity(data, passphrase, session.home.identity)
    except BadExport as error:
        error.where = error.where or str(source)
        raise
    with own_index(session.home) as index:
        never_behind(keyring, index)
    session.show(_json(session, keyring), _text)


def _passphrase(file: Path | None, descriptor: int | None, *, twice: bool) -> str:
    if file is not None and descriptor is not None:
        raise UsageProblem("a passphrase comes from a file or a descriptor, not from both")
    if file is None and descriptor is None:
        if not sys.stdin.isatty():
            raise UsageProblem(
                "this needs a passphrase and there is no terminal to ask at",
                remedy="--passphrase-file FILE or --passphrase-fd N",
            )
        text = str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=twice, err=True))
        if not text.isprintable():  # a terminal hands on bytes that are no text as lone surrogates
            raise UsageProblem("the passphrase is not text")
        return text
    try:
        with open(file if file is not None else descriptor or 0, "rb") as opened:
            data = opened.read(MAX_PASSPHRASE + 1)
        text = data.decode().rstrip("\r\n")
    except OSError as error:
        raise UsageProblem(
            f"the passphrase can not be read: {error.strerror}", where=str(file or descriptor)
        ) from error
    except UnicodeDecodeError as error:
        raise UsageProblem("the passphrase is not text", where=str(file or descriptor)) from error
    if len(data) > MAX_PASSPHRASE:
        raise UsageProblem(f"longer than {MAX_PASSPHRASE} bytes", where=str(file or descriptor))
    return text


def _load(session: Session) -> Keyring:
    from market.identity import Keyring

    return Keyring.load(session.home.identity)


def _json(session: Session, keyring: Keyring) -> dict[str, Any]:
    return {
        "schema": "archy/identity/1",
        "did": keyring.did,
        "npub": keyring.npub,
        "folder": str(session.home.identity),
        "here": list(keyring.keys_here()),
        "relays": list(keyring.current.entry.relays),
        "history": [
            {
                "seq": entry.entry.seq,
                "digest": entry.digest.hex,
                "release": list(entry.entry.keys.release),
                "online": list(entry.entry.keys.online),
                "nostr": list(entry.entry.nostr),
            }
            for entry in keyring.history.entries
        ],
    }


def _text(result: Mapping[str, Any]) -> str:
    lines = [result["did"], f"  npub     {result['npub']}", f"  keys     {safe(result['folder'])}"]
    lines.append(f"  here     {', '.join(result['here'])}")
    lines.append(f"  writes   {safe(' '.join(result['relays'])) or 'to no relay by itself; `--write-relay` names one'}")
    for entry in result["history"]:
        lines.append(f"  entry {entry['seq']}  {entry['digest']}")
        lines.append(f"           release {' '.join(entry['release'])}")
        lines.append(f"           online  {' '.join(entry['online'])}")
    if {"inception", "next-root"} & set(result["here"]):
        lines.append(
            "  The inception and next-root keys are on this machine; neither signs releases. Take them off it:"
        )
        lines.append("    archy id export drawer.archy --keys offline")
        lines.append(f"    shred -u {shlex.quote(result['folder'])}/{{inception,next-root}}.key")
    return "\n".join(lines)
