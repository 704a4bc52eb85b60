"""What the orchestrator asks of the machine itself: who holds a port, how much room a disk has."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, Protocol

from orchestrator.containers_conf import files, host_address, texts

_LISTEN: Final = "0A"
"""State of a listening TCP socket in /proc/net/tcp (Linux, include/net/tcp_states.h)."""


class Host(Protocol):
    """The machine."""

    def port_problem(self, port: int, bind: str, protocol: str) -> str:
        """Empty when this user can listen there now, else who or what prevents it."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Room for an ordinary user on the disk that holds the path."""
        ...

    def is_folder(self, path: Path) -> bool:
        """Is there a folder, and is the path the folder's own, without a link on the way?"""
        ...

    def routes(self) -> frozenset[str]:
        """Subnets to which this machine has a way that is not the default one."""
        ...

    def inside_address(self) -> str:
        """The address under which containers reach this machine."""
        ...

    def lan_address(self) -> str:
        """The address under which the local network reaches this machine; empty when there is none."""
        ...


class ThisHost:
    """The real one."""

    def port_problem(self, port: int, bind: str, protocol: str) -> str:
        address = "127.0.0.1" if bind == "loopback" else "0.0.0.0"
        kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
        with socket.socket(socket.AF_INET, kind) as probe:
            if protocol == "tcp":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is no owner
            try:
                probe.bind((address, port))
                if protocol == "tcp":
                    probe.listen(1)
            except PermissionError:
                return "ports below 1024 are not for ordinary users here (sysctl net.ipv4.ip_unprivileged_port_start)"
            except OSError as error:
                return _holder(port, protocol) if error.errno == errno.EADDRINUSE else str(error.strerror)
        return ""

    def free_bytes(self, path: Path) -> int:
        while not path.exists():
            path = path.parent
        return shutil.disk_usage(path).free

    def is_folder(self, path: Path) -> bool:
        try:
            return path.is_dir() and path.resolve() == path
        except OSError:
            return False

    def routes(self) -> frozenset[str]:
        try:
            lines = Path("/proc/net/route").read_text().splitlines()[1:]
        except OSError:
            return frozenset()
        return frozenset(route for route in map(_route, lines) if not route.endswith("/0"))

    def inside_address(self) -> str:
        return host_address(texts(files()))

    def lan_address(self) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # RFC 5737; a datagram socket sends nothing here
            except OSError:
                return ""
            return str(probe.getsockname()[0])


def _route(line: str) -> str:
    """Destination and mask are little-endian there, in hex (proc(5), /proc/net/route)."""
    fields = line.split()
    address = IPv4Address(int(fields[1], 16).to_bytes(4, "little"))
    return f"{address}/{int(fields[7], 16).bit_count()}"


def _holder(port: int, protocol: str) -> str:
    inodes = _inodes(port, protocol)
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for descriptor in (process / "fd").iterdir():
                link = os.readlink(descriptor)
                if link.startswith("socket:[") and link[8:-1] in inodes:
                    return f"process {process.name} ({(process / 'comm').read_text().strip()})"
        except OSError:
            continue  # another user's process, or one that just ended
    return "another program on this machine"


def _inodes(port: int, protocol: str) -> set[str]:
    """Inodes of sockets bound to a port (proc(5), /proc/net/tcp)."""
    found = set()
    for table in (f"/proc/net/{protocol}", f"/proc/net/{protocol}6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and (protocol == "udp" or fields[3] == _LISTEN):
                found.add(fields[9])
    return found
