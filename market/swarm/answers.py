"""Reading the head of an HTTP answer to a range request. Pure: a head and what was asked in, a promise out.

Guarantees: a `Body` is promised only for exactly the bytes that were asked for, or for the whole blob at its signed
size; everything else is a SourceFault that names the source. It refuses to know sockets and digests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from market.swarm.errors import BadAnswer, Busy, NotThere, UnexpectedStatus


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers (names in lower case; of repeated ones the last)."""

    status: int
    headers: Mapping[str, str]
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Redirected:
    """The answer was a redirect; following it is the caller's decision."""

    location: str


SPANS_HEADER: Final = "archy-spans"
"""A node says with it that it serves `/spans/<digest>/<first>-<last>`, where a content-coding has a meaning."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_REDIRECTS: Final = {301, 302, 303, 307, 308}


@dataclass(frozen=True, slots=True)
class Body:
    """What the checked head promises."""

    length: int
    """Bytes that follow the head."""
    whole: bool
    keep_alive: bool
    chunked: bool = False
    """The bytes come in chunks (RFC 9112, 7.1)."""
    zstd: bool = False
    """The bytes come compressed; `length` is what they become."""
    offers_spans: bool = False
    """A node of this project, which serves spans with a content-coding too."""


def check_head(
    source: str, head: Head, offset: int, length: int, size: int, *, ranged: bool = True, zstd: bool = False
) -> Body | Redirected:
    """Compare an answer's head with what was asked (RFC 9110, 14.4 and 15.3.7). Raises SourceFault. Pure.

    `ranged` says that a range was asked for, `zstd` that zstd (RFC 8878) was accepted.
    """
    headers = head.headers
    if head.status in _REDIRECTS:
        if "location" not in headers:
            raise BadAnswer(source, "a redirect without a location")
        return Redirected(headers["location"])
    if head.status in (404, 410):
        raise NotThere(source, "does not have this blob")
    if head.status in (429, 503):
        raise Busy(source, head.status)
    if head.status == 416:
        raise BadAnswer(source, "says that the range lies outside the blob: its blob has another size")
    if head.status not in (200, 206):
        raise UnexpectedStatus(source, head.status)
    spans = SPANS_HEADER in headers
    packed = _is_packed(source, headers.get("content-encoding", "identity").lower(), head.status, zstd)
    chunked, stated = _framing(source, headers)
    if head.status == 200:
        wanted = size if ranged else length
        if not packed and not chunked and stated != wanted:
            raise BadAnswer(source, f"offers {stated} bytes, the signed size is {wanted}")
        return Body(wanted, ranged, head.keep_alive, chunked, packed, spans)
    if not ranged:
        raise BadAnswer(source, "a partial answer to a request without a range")
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if found is None:
        raise BadAnswer(source, "a partial answer without a readable Content-Range")
    first, last, total = int(found[1]), int(found[2]), found[3]
    if (first, last) != (offset, offset + length - 1) or (not chunked and stated != length):
        raise BadAnswer(source, f"sends bytes {first}-{last} where {offset}-{offset + length - 1} were asked for")
    if total != "*" and int(total) != size:
        raise BadAnswer(source, f"its blob has {total} bytes, the signed size is {size}")
    return Body(length, False, head.keep_alive, chunked, False, spans)


def length_of(source: str, head: Head) -> int | Redirected:
    """What an answer to HEAD says of the resource's length. Raises SourceFault. Pure."""
    if head.status in _REDIRECTS and "location" in head.headers:
        return Redirected(head.headers["location"])
    if head.status in (404, 410):
        raise NotThere(source, "does not have this blob")
    if head.status != 200:
        raise UnexpectedStatus(source, head.status)
    chunked, length = _framing(source, head.headers)
    if chunked:
        raise BadAnswer(source, "does not say how long the blob is")
    return length


def _is_packed(source: str, coding: str, status: int, zstd: bool) -> bool:
    if coding == "identity":
        return False
    if coding == "zstd" and zstd and status == 200:
        return True
    raise BadAnswer(source, f"an encoded body that nobody asked for: {coding[:40]!r}")


def _framing(source: str, headers: Mapping[str, str]) -> tuple[bool, int]:
    """Whether the body is chunked, and the length that is stated otherwise. RFC 9112, 6.3."""
    transfer = headers.get("transfer-encoding")
    if transfer is not None:
        if transfer.lower() != "chunked" or "content-length" in headers:
            raise BadAnswer(source, "a body whose framing is ambiguous or unknown")
        return True, -1
    stated = headers.get("content-length", "")
    if not stated.isdigit() or len(stated) > 19:
        raise BadAnswer(source, "a body without a stated length")
    return False, int(stated)
