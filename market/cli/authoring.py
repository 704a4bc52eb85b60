"""Commands of a publisher: a relay, and an app's way from a folder to signed events on relays."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from market.cli.options import Group, json_option
from market.cli.publishing import chosen_relays, own_index, publish_documents, publishing_options
from market.cli.session import Session
from market.cli.text import safe, size_text
from market.errors import EnvironmentLacks, Problem, UsageProblem

if TYPE_CHECKING:
    from apps.manifest import Manifest

MAX_JSON_BYTES: Final = 4 * 1024 * 1024
"""Of what packing and signing write: a history of a hundred entries and three documents of 24 KiB, written loosely."""

MAX_MANIFEST_BYTES: Final = 256 * 1024
"""A manifest for people may carry comments; what is signed is bounded far lower."""


def register(root: click.Group) -> None:
    """Add this module's commands."""
    for command in (relay, app):
        root.add_command(command)


@click.group(cls=Group)
def relay() -> None:
    """A Nostr relay of your own."""


@relay.command("run", epilog="Example: archy relay run --listen 127.0.0.1:7447")
@click.option("--listen", default="127.0.0.1:7447", show_default=True, metavar="HOST:PORT")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Where events are kept.")
@click.pass_obj
def relay_run(session: Session, listen: str, data: Path | None) -> None:
    """Start an embedded relay with a persistent store, so that one machine or a LAN needs nothing else."""
    from market.discovery import relay_command
    from market.node.config import split_address

    try:
        split_address(listen)
    except ValueError as error:
        raise UsageProblem(f"--listen {listen!r} {error}") from error
    session.home.create()
    argv = relay_command(listen, data or session.home.root / "relay")
    os.execv(argv[0], argv)


@click.group(cls=Group)
def app() -> None:
    """An app's way to the market: validate, render, pack, sign, publish."""


def _read_manifest(folder: Path) -> Manifest:
    from apps.manifest import parse_manifest_yaml

    path = folder / "manifest.yml" if folder.is_dir() else folder
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise UsageProblem(f"can not read it: {error.strerror}", where=str(path)) from error
    if len(raw) > MAX_MANIFEST_BYTES:
        raise UsageProblem(f"larger than {MAX_MANIFEST_BYTES} bytes", where=str(path))
    return parse_manifest_yaml(raw, where=str(path))


_FOLDER = click.argument("folder", type=click.Path(path_type=Path, exists=True))


@app.command("validate", epilog="Example: archy app validate apps/hello")
@_FOLDER
@json_option
@click.pass_obj
def app_validate(session: Session, folder: Path) -> None:
    """Read a manifest and its Containerfiles strictly; report every error at once, and what would be right."""
    from market.packing import check_builds
    from orchestrator import unsupported

    manifest = _read_manifest(folder)
    check_builds(folder if folder.is_dir() else folder.parent, manifest)
    later = [{"path": path, "message": message} for path, message, _ in unsupported(manifest)]
    session.show(
        {
            "schema": "archy/manifest-check/1",
            "ok": True,
            "id": manifest.id,
            "version": manifest.version,
            "not_carried_out": later,
        },
        lambda r: "\n".join(
            [
                f"{safe(r['id'])} {safe(r['version'])}: the manifest is right.",
                *[f"  {safe(item['path'])}: {safe(item['message'])}" for item in r["not_carried_out"]],
            ]
        ),
    )


@app.command("render", epilog="Examples: archy app render apps/hello, archy app render apps/hello --explain")
@_FOLDER
@click.option("--publisher", help="Whose app it is; by default this home's DID.")
@click.option("--podman", default="5.4.0", show_default=True, help="Render for this Podman.")
@click.option("--explain", "explained", is_flag=True, help="Say before each line why it is there.")
@json_option
@click.pass_obj
def app_render(session: Session, folder: Path, publisher: str | None, podman: str, explained: bool) -> None:
    """Print the Quadlet units that an install would write. Before packing, image digests show as zeros."""
    from apps.machines import local_arch
    from apps.names import AppName
    from market.identity import is_did
    from market.packing import with_contexts
    from orchestrator import render_units
    from orchestrator.quadlet.explain import explain, lines

    if publisher is not None and not is_did(publisher):
        raise UsageProblem("not a publisher", where=f"--publisher {publisher[:80]}", remedy="did:key:z6Mk...")
    manifest = with_contexts(folder if folder.is_dir() else folder.parent, _read_manifest(folder))
    name = AppName(publisher or _own_did(session), manifest.id)
    try:
        units = render_units(name, manifest, arch=local_arch(), podman=podman)
    except ValueError as error:
        raise UsageProblem(f"--podman {podman!r} is not a version", remedy="for example 5.4.2") from error
    result: dict[str, Any] = {"schema": "archy/units/1", "units": dict(units)}
    if explained:
        result["lines"] = {name: [asdict(line) for line in lines(text)] for name, text in units.items()}
    session.show(
        result,
        lambda r: "\n".join(f"# {name}\n{explain(text) if explained else text}" for name, text in r["units"].items()),
    )


def _own_did(session: Session) -> str:
    from market.identity import Keyring

    return Keyring.load(session.home.identity).did


@app.command("pack", epilog="Example: archy app pack apps/hello --out dist")
@_FOLDER
@click.option("--image", "images", multiple=True, metavar="CONTAINER=DIR", help="An OCI layout; default: podman save.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@json_option
@click.pass_obj
def app_pack(session: Session, folder: Path, images: tuple[str, ...], out: Path) -> None:
    """Turn a folder and its images into blobs and a packed manifest, ready to be signed."""
    from apps.images import image_containers
    from market.packing import pack_app

    given = _given_images(images)
    manifest = _read_manifest(folder)
    with tempfile.TemporaryDirectory(prefix="archy-pack-") as temporary:
        for name, container in image_containers(manifest).items():
            if name not in given and container.image is not None:
                given[name] = _saved_image(container.image.ref, Path(temporary) / name)
        packed = pack_app(folder, given, out)
    session.show(
        {
            "schema": "archy/packed/1",
            "id": manifest.id,
            "version": manifest.version,
            "out": str(out),
            "blobs": len(packed.blobs),
            "bytes": packed.total_size,
        },
        lambda r: (
            f"{safe(r['id'])} {safe(r['version'])}: {r['blobs']} blobs, {size_text(r['bytes'])}, in {safe(r['out'])}"
        ),
    )


def _given_images(words: tuple[str, ...]) -> dict[str, Path]:
    given = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not Path(path).is_dir():
            raise UsageProblem(f"--image {word!r} names no folder", remedy="CONTAINER=DIR, an OCI layout")
        given[name] = Path(path)
    return given


def _saved_image(ref: str, out: Path) -> Path:
    argv = ["podman", "save", "--uncompressed", "--format", "oci-dir", "-o", str(out), ref]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    except FileNotFoundError as error:
        raise EnvironmentLacks(
            "podman is not installed", remedy="apt-get install podman, or pass --image CONTAINER=DIR"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Problem("podman save did not end in 10 minutes", where=ref) from error
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise Problem(f"podman save failed: {last[0]}", where=ref, remedy="build or pull the image first")
    return out


J = TypeVar("J")


def _read_json(path: Path, form: type[J], writer: str) -> J:
    """What another command of this program wrote. Raises UsageProblem for anything else."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError as error:
        raise UsageProblem("there is no such file", where=str(path), remedy=f"run `{writer}` first") from error
    except OSError as error:
        raise UsageProblem(f"can not be read: {error.strerror}", where=str(path)) from error
    if len(raw) > MAX_JSON_BYTES:
        raise UsageProblem(f"larger than {MAX_JSON_BYTES} bytes", where=str(path), remedy=f"run `{writer}` again")
    try:
        return msgspec.json.decode(raw, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageProblem(f"not what `{writer}` writes", where=str(path), remedy="run it again") from error


@app.command("sign", epilog="Example: archy app sign dist --origin https://apps.example")
@click.argument("packed", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--origin", "origins", multiple=True, required=True, metavar="URL", help="Where the blobs will be.")
@click.option("--source", default="", help="The source commit the app was built from.")
@click.option("--channel", default="stable", show_default=True)
@json_option
@click.pass_obj
def app_sign(session: Session, packed: Path, origins: tuple[str, ...], source: str, channel: str) -> None:
    """Sign a packed app: the app for people, an immutable release and a fresh head, written beside its blobs."""
    from market.discovery import never_behind, sign_release
    from market.identity import Keyring

    keyring = Keyring.load(session.home.identity)
    with own_index(session.home) as index:
        never_behind(keyring, index)
    manifest = _read_json(packed / "manifest.json", dict, "archy app pack")
    signed = sign_release(keyring, manifest, origins=origins, source=source, channel=channel, now=int(time.time()))
    target = packed / "signed.json"
    try:
        target.write_text(json.dumps(signed.documents, indent=1, sort_keys=True))
    except OSError as error:
        raise EnvironmentLacks(
            f"can not be written: {error.strerror}", where=str(target), remedy="make room, then sign again"
        ) from error
    session.show(
        {
            "schema": "archy/signed/1",
            "publisher": keyring.did,
            "id": manifest["id"],
            "version": manifest["version"],
            "digest": signed.digest.hex,
            "documents": str(target),
        },
        lambda r: f"{safe(r['id'])} {safe(r['version'])} is signed by {r['publisher']}\n  release  {r['digest']}",
    )


@app.command("publish", epilog="Example: archy app publish dist --relay wss://relay.example")
@click.argument("packed", type=click.Path(path_type=Path, exists=True, file_okay=False))
@publishing_options
@json_option
@click.pass_context
def app_publish(context: click.Context, /, packed: Path, **options: Any) -> None:
    """Publish a signed app to relays, and say of each what it took. Exit code 1 when fewer than --at-least took all."""
    from market.identity import Keyring

    session: Session = context.obj
    keyring = Keyring.load(session.home.identity)
    documents = _read_json(packed / "signed.json", list[dict[str, Any]], "archy app sign")
    if not documents:
        raise UsageProblem("nothing is signed in it", where=str(packed / "signed.json"), remedy="archy app sign")
    urls = chosen_relays(session, keyring, relays=options.pop("relays"), **options)
    again = "run it again; publishing twice is harmless"
    publish_documents(context, keyring, documents, urls, again=again, **options)


@app.command("refresh", epilog="Example, for a timer: archy app refresh --relay wss://relay.example")
@click.argument("apps", nargs=-1)
@click.option("--if-within", "days", default=None, type=click.IntRange(0, 400), help="Only what expires in DAYS days.")
@publishing_options
@json_option
@click.pass_context
def app_refresh(context: click.Context, /, apps: tuple[str, ...], days: int | None, **options: Any) -> None:
    """Say again what is newest of your own apps, so that their heads do not expire. `archy up` does this by itself."""
    from market.discovery import due_heads, refreshed_heads
    from market.identity import Keyring

    session: Session = context.obj
    keyring = Keyring.load(session.home.identity)
    urls = chosen_relays(session, keyring, relays=options.pop("relays"), **options)
    now = time.time()
    with own_index(session.home) as index:
        chosen = apps or due_heads(keyring, index, now=now, within=None if days is None else days * 86_400)
        documents = refreshed_heads(keyring, index, chosen, now=now)
    publish_documents(context, keyring, documents, urls, again="run it again; saying it twice is harmless", **options)
