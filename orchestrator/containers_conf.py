"""What the operator's containers.conf says about the host's address inside containers. Read, and never written.

Guarantees: the operator's own settings hold; nothing of this node is put into a file that is theirs, so that there is
nothing to merge, to repeat or to take back. Source: containers.conf(5), pasta(1).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

DEFAULT: Final = "169.254.1.2"
"""Podman starts pasta so that this address is the host's, unless it is told another (podman-run(1), pasta)."""
MAX_FILE: Final = 1024 * 1024
"""Bytes; the commented original has 40 KiB."""

_OPTION: Final = "--map-guest-addr"


def host_address(texts: Iterable[str]) -> str:
    """The host's address inside containers, from files in the order in which later ones win. Pure."""
    address, mapped = "", DEFAULT
    for text in texts:
        try:
            body = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            continue  # Podman refuses it too, and tells
        address = _address(_table(body, "containers").get("host_containers_internal_ip")) or address
        options = _table(body, "network").get("pasta_options")
        if isinstance(options, list):
            mapped = _mapped([str(option) for option in options]) or mapped
    return address or mapped


def _table(body: dict[str, Any], name: str) -> dict[str, Any]:
    table = body.get(name)
    return table if isinstance(table, dict) else {}


def _mapped(options: list[str]) -> str:
    for option, following in zip(options, [*options[1:], ""], strict=True):
        if option == _OPTION:
            return _address(following)
        if option.startswith(f"{_OPTION}="):
            return _address(option.partition("=")[2])
    return ""


def _address(value: object) -> str:
    try:
        return str(IPv4Address(value)) if isinstance(value, str) else ""
    except ValueError:
        return ""


def files(home: Path | None = None, root: Path = Path("/")) -> Iterator[Path]:
    """The files that rootless Podman reads, in its order."""
    own = Path(os.environ.get("XDG_CONFIG_HOME") or (home or Path.home()) / ".config") / "containers"
    for folder in (root / "usr/share/containers", root / "etc/containers", own):
        yield folder / "containers.conf"
        yield from sorted((folder / "containers.conf.d").glob("*.conf"))


def texts(paths: Iterable[Path]) -> Iterator[str]:
    """The contents of those that are there and can be read."""
    for path in paths:
        try:
            if path.stat().st_size <= MAX_FILE:
                yield path.read_text(errors="replace")
        except OSError:
            continue
