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
    def from_ids(
        cls, names: Sequence[str], sources: Ids, targets: Ids, *, muted: tuple[Ids, Ids] | None = None
    ) -> TrustGraph:
        """From integer edges over `names`, which must be sorted and without doubles, less the `muted` ones.

        Works in place on one array of 64-bit keys: at 2e7 edges every further copy would be 160 MB. Raises ValueError.
        """
        if any(a >= b for a, b in itertools.pairwise(names)):
            raise ValueError("names must be sorted and distinct")
        count = max(len(names), 1)
        keys = _keys(sources, targets, len(names))
        listed = keys.size
        keys = keys[keys % (count + 1) != 0] if (sources == targets).any() else keys
        ignored = {"follows of oneself": listed - keys.size}
        keys = _distinct(keys)
        if muted is not None and muted[0].size:
            kept = keys[np.isin(keys, _keys(*muted, len(names)), invert=True)]
            ignored["follows taken back by a mute"] = keys.size - kept.size
            keys = kept
        starts = np.searchsorted(keys, np.arange(len(names) + 1, dtype=np.int64) * count)
        if np.diff(starts).max(initial=0) > MAX_FOLLOWS:
            place = np.arange(keys.size, dtype=np.int64) - starts[keys // count]
            kept = keys[place < MAX_FOLLOWS]
            ignored["beyond the longest list"] = keys.size - kept.size
            keys = kept
            starts = np.searchsorted(keys, np.arange(len(names) + 1, dtype=np.int64) * count)
        out_targets, in_starts, in_sources = _turned(keys, count, len(names))
        return cls(
            names=tuple(names),
            ids={name: number for number, name in enumerate(names)},
            out_starts=starts.astype(np.int64),
            out_targets=out_targets,
            in_starts=in_starts,
            in_sources=in_sources,
            ignored={reason: number for reason, number in ignored.items() if number},
        )

    def followed_by(self, person: int) -> Ids:
        return self.out_targets[self.out_starts[person] : self.out_starts[person + 1]]

    def followers_of(self, person: int) -> Ids:
        return self.in_sources[self.in_starts[person] : self.in_starts[person + 1]]


def _keys(sources: Ids, targets: Ids, people: int) -> Offsets:
    """Each edge as one number, so that sorting the numbers sorts by source and then by target."""
    if sources.size and (min(sources.min(), targets.min()) < 0 or max(sources.max(), targets.max()) >= people):
        raise ValueError("an edge names nobody")
    keys = sources.astype(np.int64)
    keys *= max(people, 1)
    keys += targets
    return keys


def _distinct(keys: Offsets) -> Offsets:
    """Sorted in place, each once."""
    keys.sort()
    first = np.ones(keys.size, dtype=np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    return keys if first.all() else keys[first]


def _turned(keys: Offsets, count: int, people: int) -> tuple[Ids, Offsets, Ids]:
    """The targets in order of the sources, and the same edges by target: row offsets and sources. Uses `keys` up."""
    out_targets, sources = np.empty(keys.size, dtype=ID), np.empty(keys.size, dtype=ID)
    np.remainder(keys, count, out=out_targets, casting="unsafe")
    np.floor_divide(keys, count, out=sources, casting="unsafe")
    np.multiply(out_targets, count, out=keys, dtype=np.int64)
    keys += sources
    keys.sort()
    np.remainder(keys, count, out=sources, casting="unsafe")
    starts = np.searchsorted(keys, np.arange(people + 1, dtype=np.int64) * count)
    return out_targets, starts.astype(np.int64), sources
