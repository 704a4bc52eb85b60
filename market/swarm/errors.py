"""The swarm's faults. Each says whose fault it was: a source (by URL), the publisher, or this machine's store."""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from market.errors import EnvironmentLacks, Problem, Refused


class FaultKind(Enum):
    """What the scheduler needs to know about a source's failure."""

    TRANSPORT = "transport"
    """It may work the next time: back off; three of them drop a peer for this blob."""
    BUSY = "busy"
    """It has no room for one more just now: ask again later, which is no fault of its."""
    LACKS = "lacks"
    """It does not have the blob: a peer is not asked again for it."""
    REFUSED = "refused"
    """Policy forbids talking to it: the same answer the next time."""
    CORRUPT = "corrupt"
    """It sent bytes that do not verify: a peer is banned at once, an origin backs off."""


class SourceFault(Problem):
    """A source failed; the fetch goes on with the others. `where` is the source's URL."""

    kind = "source-fault"
    fault: ClassVar[FaultKind] = FaultKind.TRANSPORT

    def __init__(self, source: str, what: str) -> None:
        super().__init__(what, where=source)
        self.source = source


class ConnectFailed(SourceFault):
    """No connection within the deadline, or it was refused, or TLS did not succeed."""

    kind = "connect-failed"


class Stalled(SourceFault):
    """Nothing, or next to nothing, came within the deadline."""

    kind = "stalled"


class Truncated(SourceFault):
    """The connection ended before the bytes that were announced."""

    kind = "truncated"


class BadAnswer(SourceFault):
    """An HTTP answer that does not fit the request: head, length, range or content-coding."""

    kind = "bad-answer"


class UnexpectedStatus(SourceFault):
    """A status that is neither success nor absence."""

    kind = "unexpected-status"

    def __init__(self, source: str, status: int) -> None:
        super().__init__(source, f"answered with HTTP status {status}")
        self.status = status


class Busy(SourceFault):
    """The source asks to come back later (HTTP 429 or 503)."""

    kind = "busy"
    fault = FaultKind.BUSY

    def __init__(self, source: str, status: int) -> None:
        super().__init__(source, f"is busy: answered with HTTP status {status}")


class NotThere(SourceFault):
    """The source does not have the blob (HTTP 404 or 410)."""

    kind = "not-there"
    fault = FaultKind.LACKS


class AddressRefused(SourceFault):
    """The host resolves to addresses that a stranger may not send this node to (SSRF), or to none."""

    kind = "address-refused"
    fault = FaultKind.REFUSED


class RedirectRefused(SourceFault):
    """A redirect that policy does not follow: from a peer, to plain HTTP from HTTPS, too many, not HTTP at all."""

    kind = "redirect-refused"
    fault = FaultKind.REFUSED


class PieceMismatch(SourceFault):
    """A piece does not hash to what the publisher signed."""

    kind = "piece-mismatch"
    fault = FaultKind.CORRUPT

    def __init__(self, source: str, index: int) -> None:
        super().__init__(source, f"piece {index} does not hash to the signed digest")
        self.index = index


class AllSourcesFailed(Problem):
    """No source is left that could bring the rest. What was verified stays on disk for the next attempt."""

    kind = "no-source"

    def __init__(self, what: str, *, where: str, faults: tuple[tuple[str, str], ...]) -> None:
        told = "; ".join(f"{source}: {text}" for source, text in faults) or "there are no sources"
        super().__init__(f"{what}: {told}", where=where, remedy="try again later, or add a peer")
        self.faults = faults
        """(source URL, its last fault) of each source."""


class PublisherInconsistent(Refused):
    """The signed piece list and the signed digest name different bytes. No source is to blame."""

    kind = "publisher-inconsistent"


class SizeContradicted(Refused):
    """The signed size is not the size of the bytes that the signed digest names."""

    kind = "size-contradicted"


class StoreLocked(Problem):
    """Another process owns the store."""

    kind = "store-locked"


class StoreFull(EnvironmentLacks):
    """No room (disk, quota or file size limit). Nothing that was verified is lost."""

    kind = "store-full"


class StoreUnusable(EnvironmentLacks):
    """The folder can not be written or read."""

    kind = "store-unusable"


class NotStored(Problem):
    """The store does not have that blob."""

    kind = "not-stored"


class DamagedBlob(Problem):
    """A stored blob no longer hashes to its name; it was taken out of the store."""

    kind = "damaged-blob"
