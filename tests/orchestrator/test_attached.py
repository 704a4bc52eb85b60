"""What the kernel says of links between network namespaces; the lab has containers that lost theirs (test_repair)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from orchestrator import attached_inside
from orchestrator.attached_inside import ATTRIBUTE, HEADER, attributes, messages


@given(st.binary(max_size=200))
def test_any_bytes_are_read_to_an_end(raw: bytes) -> None:
    assert len(attributes(raw)) <= len(raw) // ATTRIBUTE.size
    assert sum(len(body) + HEADER.size for _, body in messages(raw)) <= len(raw) + HEADER.size


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=9), max_size=5), st.lists(st.binary(max_size=9)))
def test_what_was_written_is_read(given_: dict[int, bytes], bodies: list[bytes]) -> None:
    def padded(raw: bytes) -> bytes:
        return raw + bytes(-len(raw) % 4)

    one = b"".join(padded(ATTRIBUTE.pack(ATTRIBUTE.size + len(body), kind) + body) for kind, body in given_.items())
    assert attributes(one) == given_
    many = b"".join(padded(HEADER.pack(HEADER.size + len(body), 16, 0, 1, 0) + body) for body in bodies)
    assert list(messages(many)) == [(16, body) for body in bodies]


def test_no_process_is_linked_to_its_own_namespace_and_one_that_is_gone_to_none() -> None:
    argv = (sys.executable, "-I", str(attached_inside.__file__))
    asked = json.dumps([os.getpid(), 2**22 + 1]).encode()
    told = json.loads(subprocess.run(argv, input=asked, capture_output=True, check=True, timeout=30).stdout)
    assert told["attached"] == []
    assert told["links"] >= 0
