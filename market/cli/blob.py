"""`archy blob`: the blobs this node keeps and serves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from market.cli.options import Group, json_option
from market.cli.session import Session
from market.cli.text import safe, size_text, table
from market.errors import Problem, UsageProblem


def register(root: click.Group) -> None:
    """Add this module's commands."""
    root.add_command(blob)


@click.group(cls=Group)
def blob() -> None:
    """The blobs this node keeps and serves."""


@blob.command("add")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@json_option
@click.pass_obj
def add(session: Session, paths: tuple[Path, ...]) -> None:
    """Store and pin files, so that peers can fetch them here."""
    words = [str(path.absolute()) for path in paths]
    session.show(session.call("blobs.add", paths=words), _blobs_text)


@blob.command(
    "get", epilog="Examples: archy blob get 5d0f... --app immich, archy blob get 5d0f... --origin https://a.b"
)
@click.argument("digest")
@click.option("--app", help="Look for it in this app's signed listing: size, pieces and origins are known then.")
@click.option("--origin", "origins", multiple=True, metavar="URL", help="Base URL that has /blobs/DIGEST; repeatable.")
@click.option("--size", type=click.IntRange(0), help="Its size in bytes, if you know it from somebody you trust.")
@click.option("--pieces", metavar="DIGEST", help="The digest of its piece list, for blobs above 1 MiB.")
@click.option("--max-size", type=click.IntRange(1), help="The most that a source may send, where no size is signed.")
@click.option("--no-pin", is_flag=True, help="Let it be collected again when room is needed.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Also write it here.")
@json_option
@click.pass_obj
def get(
    session: Session,
    digest: str,
    app: str | None,
    origins: tuple[str, ...],
    size: int | None,
    pieces: str | None,
    max_size: int | None,
    no_pin: bool,
    output: Path | None,
) -> None:
    """Fetch a blob from origins and peers, verify it, keep it."""
    words: dict[str, Any] = {"digest": digest, "app": app, "origins": list(origins), "size": size, "pieces": pieces}
    if max_size is not None:
        words["most"] = max_size
    result = session.call("blobs.get", **words, pin=not no_pin)
    if output is not None:
        _write(Path(result["path"]), output)
    session.show(result, lambda r: f"{r['blob']['blake3']}  {size_text(r['blob']['size'])}, verified {r['checked']}")


def _write(source: Path, target: Path) -> None:
    import shutil

    try:
        with source.open("rb") as file, target.open("xb") as out:
            shutil.copyfileobj(file, out, 1024 * 1024)
    except FileExistsError:
        raise UsageProblem("is there already", where=str(target), remedy="choose another name") from None
    except OSError as fault:
        raise Problem(f"could not be written: {fault.strerror}", where=str(target)) from fault


@blob.command("serve", epilog="Example: archy blob serve 0.0.0.0:8470")
@click.argument("listen", metavar="HOST:PORT")
@json_option
@click.pass_obj
def serve(session: Session, listen: str) -> None:
    """Serve blobs at this address from the next `archy up` on; an empty word stops it."""
    result = session.call("config", assignments=[f"listen={listen}"])
    session.show(result, lambda r: f"From its next start on: blobs at {r['settings']['listen'] or '-'}.")


@blob.command("ls")
@json_option
@click.pass_obj
def ls(session: Session) -> None:
    """Every complete blob in the store."""
    session.show(session.call("blobs"), _blobs_text)


@blob.command("verify")
@click.argument("digests", nargs=-1)
@json_option
@click.pass_obj
def verify(session: Session, digests: tuple[str, ...]) -> None:
    """Hash blobs again, all of them if none is named; damaged ones are removed. Exit code 1 if there were any."""
    result = session.call("blobs.verify", digests=list(digests))
    session.show(result, _verified_text)
    if not result["ok"]:
        raise Problem("some blobs were damaged or absent", remedy="fetch them again")


def _verified_text(result: Mapping[str, Any]) -> str:
    lines = [f"{row['blake3']}  {'ok' if row['ok'] else safe(row['problem'])}" for row in result["blobs"]]
    return "\n".join(lines) or "No blobs."


@blob.command("pin")
@click.argument("digest")
@json_option
@click.pass_obj
def pin(session: Session, digest: str) -> None:
    """Keep and share a blob until it is unpinned."""
    session.show(session.call("blobs.pin", digest=digest), lambda r: f"{r['blake3']} is pinned.")


@blob.command("unpin")
@click.argument("digest")
@json_option
@click.pass_obj
def unpin(session: Session, digest: str) -> None:
    """No longer keep a blob for its own sake."""
    session.show(session.call("blobs.unpin", digest=digest), lambda r: f"{r['blake3']} is not pinned.")


@blob.command("gc")
@click.option("--quota", default="0", show_default=True, metavar="SIZE", help="Stop at this many bytes (MiB, GiB).")
@json_option
@click.pass_obj
def gc(session: Session, quota: str) -> None:
    """Remove what no installed app and no pin needs, least recently used first; the last hour's stays."""
    result = session.call("blobs.gc", quota=_bytes(quota))
    session.show(
        result,
        lambda r: f"{len(r['removed'])} removed, {size_text(r['freed'])} freed, {size_text(r['kept'])} kept.",
    )


@blob.command("peers")
@click.argument("digest")
@json_option
@click.pass_obj
def peers(session: Session, digest: str) -> None:
    """Ask every peer that is known whether it has a blob, and show how good each has been."""
    session.show(session.call("blobs.peers", digest=digest), _peers_text)


def _peers_text(result: Mapping[str, Any]) -> str:
    rows = [
        (
            peer["url"],
            "yes" if peer["has"] else "no",
            f"{peer['milliseconds']:.0f} ms",
            f"{peer['rate'] / 1e6:.1f} MB/s" if peer["rate"] else "-",
            size_text(peer["brought"]),
            peer["lies"] or "",
            peer["problem"],
        )
        for peer in result["peers"]
    ]
    head = ("PEER", "HAS IT", "ANSWERED IN", "LAST RATE", "BROUGHT", "LIES", "")
    return table(head, rows) if rows else "No peers are known: `archy config peers=URL`, or `archy config lan=true`."


def _blobs_text(result: Mapping[str, Any]) -> str:
    def marks(row: Mapping[str, Any]) -> str:
        return "".join(f"  {word}" for word in ("pinned", "shared") if row.get(word))

    return "\n".join(f"{b['blake3']}  {size_text(b['size'])}{marks(b)}" for b in result["blobs"]) or "No blobs."


_UNITS = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,15}) *([A-Za-z]*)", text.strip())
    if found is None or found[2] not in _UNITS:
        raise UsageProblem(f"{text[:40]!r} is no size", remedy="for example 500MiB or 20GiB")
    return int(found[1]) * _UNITS[found[2]]
