"""Memory for the kernel to copy pieces into.

Guarantees: every buffer begins at a page. The kernel copies with `rep movsb`, which Zen 3 and 4 do several times slower
where the target lies 1 to 31 bytes further into its page than the source does; what is sent from a file begins at a
page, and what malloc gives for a large block begins 16 bytes after one. It refuses to know what is kept in it.
"""

from __future__ import annotations

import mmap
from collections import deque


def page_aligned(size: int) -> memoryview:
    """Zeroed memory of `size` bytes, at least one; the system has it back when nobody refers to it any more."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class Buffers:
    """Piece-sized buffers that are used again: fresh memory costs a page fault every 4 KiB. Threads may share them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: deque[memoryview] = deque()

    def take(self) -> memoryview:
        try:
            return self._free.pop()
        except IndexError:
            return page_aligned(self._size)

    def give_back(self, buffer: memoryview) -> None:
        self._free.append(buffer)
