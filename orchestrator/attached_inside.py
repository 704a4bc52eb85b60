"""Tells which processes' network namespaces are linked to the one it runs in. A program of its own, with nothing but
the standard library.

The look at Podman's state runs it under `podman unshare --rootless-netns`: a container that was started in a namespace
that is lost since has no link in the present one. Standard input: JSON list of process ids. Standard output: JSON
{"attached": [those that are linked], "links": how many links lead to other namespaces}. Interface: rtnetlink(7),
RTM_GETLINK and RTM_GETNSID (linux/net_namespace.h).
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Iterator

RTM_NEWLINK = 16
RTM_GETLINK = 18
RTM_NEWNSID = 88
RTM_GETNSID = 90
NLM_F_REQUEST = 0x1
NLM_F_DUMP = 0x300
NLMSG_ERROR = 2
NLMSG_DONE = 3
NETNSA_NSID = 1
NETNSA_PID = 2
IFLA_LINK_NETNSID = 37
NLA_TYPE_MASK = 0x3FFF
HEADER = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence number, port."""
ATTRIBUTE = struct.Struct("=HH")
"""rtattr: length, type."""
LINK_HEAD = 16
"""Bytes of ifinfomsg."""
NSID_HEAD = 4
"""Bytes of rtgenmsg, padded."""
MAX_ANSWER = 1 << 20
SECONDS = 10.0


def attributes(raw: bytes) -> dict[int, bytes]:
    """The attributes of one message, by type."""
    found = {}
    while len(raw) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(raw)
        if length < ATTRIBUTE.size:
            break
        found[kind & NLA_TYPE_MASK] = raw[ATTRIBUTE.size : length]
        raw = raw[(length + 3) & ~3 :]
    return found


def messages(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each message of a datagram."""
    while len(raw) >= HEADER.size:
        length, kind, *_ = HEADER.unpack_from(raw)
        if length < HEADER.size:
            return
        yield kind, raw[HEADER.size : length]
        raw = raw[(length + 3) & ~3 :]


def ask(kernel: socket.socket, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """The answers to one question, errors included."""
    kernel.send(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 1, 0) + body)
    while True:
        for answer, said in messages(kernel.recv(MAX_ANSWER)):
            if answer == NLMSG_DONE:
                return
            yield answer, said
            if answer == NLMSG_ERROR or not flags & NLM_F_DUMP:
                return


def number(raw: bytes | None) -> int | None:
    """A signed 32-bit number; None where there is none, or no namespace (it is -1 then)."""
    value = int(struct.unpack("=i", raw)[0]) if raw is not None and len(raw) == 4 else -1
    return value if value >= 0 else None


def look(pids: list[int]) -> dict[str, object]:
    """Which of these processes are linked to the namespace that this one runs in."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(SECONDS)
        kernel.bind((0, 0))
        dump = ask(kernel, RTM_GETLINK, NLM_F_DUMP, bytes(LINK_HEAD))
        there = [
            number(attributes(said[LINK_HEAD:]).get(IFLA_LINK_NETNSID)) for kind, said in dump if kind == RTM_NEWLINK
        ]
        linked = [id_ for id_ in there if id_ is not None]
        attached = []
        for pid in pids:
            asked = bytes(NSID_HEAD) + ATTRIBUTE.pack(8, NETNSA_PID) + struct.pack("=I", pid)
            for kind, said in ask(kernel, RTM_GETNSID, 0, asked):
                if kind == RTM_NEWNSID and number(attributes(said[NSID_HEAD:]).get(NETNSA_NSID)) in linked:
                    attached.append(pid)
    return {"attached": attached, "links": len(linked)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(look([int(pid) for pid in json.load(sys.stdin)])))
