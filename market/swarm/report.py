"""What a fetch tells while it runs and when it is done. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from market.model import BlobRef
from market.swarm.sources import Source, SourceKind

PROGRESS_SECONDS: Final = 0.1
"""How often progress is told: as smooth as an eye can follow, and little to write into a log."""
RATE_SECONDS: Final = 1.0
"""Half-life of the rate that is shown."""
MAX_FAULTS: Final = 8
"""Faults remembered per source: enough to see a pattern, whatever a hostile source does."""


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """Where a fetch stands: verified bytes (those of earlier attempts included), total bytes, bytes per second."""

    ref: BlobRef
    done: int
    total: int
    rate: float


class Pace:
    """The rate that is shown: what came lately counts more than what came before. Seconds are given. Pure."""

    def __init__(self, done: int, now: float) -> None:
        self._done = done
        self._then = now
        self._rate: float | None = None

    def at(self, done: int, now: float) -> float:
        """Bytes per second, when `done` bytes are there in all."""
        elapsed = now - self._then
        if elapsed <= 0:
            return self._rate or 0.0
        latest = (done - self._done) / elapsed
        share = 0.5 ** (elapsed / RATE_SECONDS)
        self._rate = latest if self._rate is None else share * self._rate + (1 - share) * latest
        self._done, self._then = done, now
        return self._rate


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What one source did. `used` bytes were verified and kept; `wasted` came and were not needed or not right."""

    source: Source
    used: int = 0
    wasted: int = 0
    banned: str | None = None
    """Why it is banned; an origin never is."""
    faults: tuple[str, ...] = ()
    """Its last faults, oldest first."""

    def to_json(self) -> dict[str, object]:
        return {
            "url": self.source.url,
            "kind": self.source.kind.value,
            "bytes": self.used,
            "wasted": self.wasted,
            "banned": self.banned,
            "faults": list(self.faults),
        }


@dataclass(frozen=True, slots=True)
class FetchReport:
    """The outcome of one fetch, or (by `+`) of several from the same sources. The piece list's bytes count too."""

    seconds: float = 0.0
    already_present: int = 0
    """Bytes of blobs that were complete before."""
    resumed: int = 0
    """Verified bytes that an earlier attempt had left."""
    sources: tuple[SourceReport, ...] = ()
    fetched: int = field(init=False)
    """Verified bytes that came over the network."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fetched", sum(source.used for source in self.sources))

    @property
    def bytes_by_source(self) -> Mapping[str, int]:
        """URL -> verified bytes."""
        return {report.source.url: report.used for report in self.sources}

    @property
    def bytes_by_kind(self) -> Mapping[SourceKind, int]:
        return {kind: sum(report.used for report in self.sources if report.source.kind is kind) for kind in SourceKind}

    @property
    def wasted(self) -> int:
        return sum(report.wasted for report in self.sources)

    @property
    def banned(self) -> Mapping[str, str]:
        """URL -> reason."""
        return {report.source.url: report.banned for report in self.sources if report.banned is not None}

    def __add__(self, other: FetchReport) -> FetchReport:
        """One after the other: everything adds up."""
        merged = {report.source: report for report in self.sources}
        for report in other.sources:
            merged[report.source] = _joined(merged.get(report.source), report)
        return FetchReport(
            self.seconds + other.seconds,
            self.already_present + other.already_present,
            self.resumed + other.resumed,
            tuple(merged.values()),
        )

    def to_json(self) -> dict[str, object]:
        return {
            "seconds": self.seconds,
            "already_present": self.already_present,
            "resumed": self.resumed,
            "fetched": self.fetched,
            "wasted": self.wasted,
            "sources": [report.to_json() for report in self.sources],
        }


def _joined(one: SourceReport | None, other: SourceReport) -> SourceReport:
    if one is None:
        return other
    return SourceReport(
        one.source,
        one.used + other.used,
        one.wasted + other.wasted,
        one.banned or other.banned,
        (one.faults + other.faults)[-MAX_FAULTS:],
    )
