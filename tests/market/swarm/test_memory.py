"""Where the buffers of pieces lie, which decides how fast the kernel copies into them."""

from __future__ import annotations

import ctypes
import mmap

import pytest

from market.swarm.memory import Buffers, page_aligned


def address_of(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@pytest.mark.parametrize("size", [1, 4096, 1024 * 1024, 1024 * 1024 + 1])
def test_a_buffer_of_any_size_begins_at_a_page(size: int) -> None:
    buffer = page_aligned(size)
    assert len(buffer) == size
    assert address_of(buffer) % mmap.PAGESIZE == 0


def test_a_buffer_that_was_given_back_is_used_again() -> None:
    buffers = Buffers(1024 * 1024)
    first = buffers.take()
    second = buffers.take()
    assert address_of(first) != address_of(second)
    buffers.give_back(first)
    assert buffers.take() is first
