"""Who follows whom, as arrays. Guarantees one numbering for one set of people: the same edges in any order give the
same graph, bit for bit. Refuses to know what a follow is worth, what a DID is, and what time it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

ID: Final = np.int32
"""Ids are 32 bits: 2e7 edges are then 160 MB in both directions, and no operator's circle holds 2^31 people."""

Ids = NDArray[np.int32]
Offsets = NDArray[np.int64]

MAX_FOLLOWS: Final = 10_000
"""Edges kept per person. Real lists end near 5,000; a list of 100,000 gives each entry next to nothing anyway."""


@dataclass(frozen=True, eq=False, slots=True)
class TrustGraph:
    """A directed graph in compressed sparse rows, in both directions.

    `names[i]` is person i, sorted; row i of the out-CSR is `out_targets[out_starts[i]:out_starts[i + 1]]`, ascending;
    the in-CSR likewise holds the sources. No self-loops and no double edges. `ignored` counts what was left out.
    """

    names: tuple[str, ...]
    ids: Mapping[str, int]
    out_starts: Offsets
    out_targets: Ids
    in_starts: Offsets
    in_sources: Ids
    ignored: Mapping[str, int]

    @property
    def people(self) -> int:
        return len(self.names)

    @property
    def edges(self) -> int:
        return int(self.out_targets.size)

    @classmethod
    def from_edges(cls, edges: Iterable[tuple[str, str]], people: Iterable[str] = ()) -> TrustGraph:
        """From (follower, followed) names, plus people who may stand alone."""
        pairs = list(edges)
        names = tuple(sorted({person for pair in pairs for person in pair} | set(people)))
        ids = {name: number for number, name in enumerate(names)}
        sources = np.fromiter((ids[a] for a, _ in pairs), dtype=ID, count=len(pairs))
        targets = np.fromiter((ids[b] for _, b in pairs), dtype=ID, count=len(pairs))
        return cls.from_ids(names, sources, targets)

    @classmethod
    def from_ids(cls, names: Sequence[str], sources: Ids, targets: Ids) -> TrustGraph:
        """From integer edges over `names`, which must be sorted and without doubles. Raises ValueError otherwise."""
        if any(a >= b for a, b in itertools.pairwise(names)):
            raise ValueError("names must be sorted and distinct")
        count = len(names)
        if sources.size and (min(sources.min(), targets.min()) < 0 or max(sources.max(), targets.max()) >= count):
            raise ValueError("an edge names nobody")
        loops = sources == targets
        keys = np.unique(sources[~loops].astype(np.int64) * max(count, 1) + targets[~loops])
        kept_sources = (keys // max(count, 1)).astype(ID)
        kept_targets = (keys % max(count, 1)).astype(ID)
        starts = _starts(kept_sources, count)
        place = np.arange(keys.size, dtype=np.int64) - starts[kept_sources]
        within = place < MAX_FOLLOWS
        ignored = {"follows themselves": int(loops.sum()), "beyond the longest list": int((~within).sum())}
        if ignored["beyond the longest list"]:
            kept_sources, kept_targets = kept_sources[within], kept_targets[within]
            starts = _starts(kept_sources, count)
        order = np.argsort(kept_targets, kind="stable")
        return cls(
            names=tuple(names),
            ids={name: number for number, name in enumerate(names)},
            out_starts=starts,
            out_targets=kept_targets,
            in_starts=_starts(kept_targets[order], count),
            in_sources=kept_sources[order],
            ignored={reason: number for reason, number in ignored.items() if number},
        )

    def followed_by(self, person: int) -> Ids:
        return self.out_targets[self.out_starts[person] : self.out_starts[person + 1]]

    def followers_of(self, person: int) -> Ids:
        return self.in_sources[self.in_starts[person] : self.in_starts[person + 1]]


def _starts(rows: Ids, count: int) -> Offsets:
    """Row offsets (count + 1 of them) of sorted row numbers."""
    return np.searchsorted(rows, np.arange(count + 1, dtype=np.int64)).astype(np.int64)
