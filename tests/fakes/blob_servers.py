"""Real HTTP servers on real sockets that serve `/blobs/<digest>` from a folder: well, capped, or in a hostile way.

In tests: `with BlobServer(folder, Faults(...)) as server: server.url`. As a command, a plain static origin:

    python -m tests.fakes.blob_servers --root DIR --listen HOST:PORT [--rate BYTES_PER_S] [--corrupt-first-piece] ...

Serves DIR/blobs/<digest> and DIR/blobs/<aa>/<digest>. It knows nothing of the project's own code on purpose.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

PIECE = 1024 * 1024
_CHUNK = 256 * 1024
_PATH = re.compile(r"/blobs/([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Faults:
    """What a server does wrong. The default is a good server. Counts are of body bytes."""

    rate: float | None = None
    """Bytes per second, all connections together."""
    latency: float = 0.0
    """Seconds before each answer."""
    corrupt_pieces: frozenset[int] = frozenset()
    """These pieces of every blob have one bit flipped."""
    corrupt_first_asked: bool = False
    """The first piece that is asked of a blob above one piece has one bit flipped; all else is right."""
    stall_after: int | None = None
    """Sends this many bytes, then nothing, holding the connection; -1 stalls before the head."""
    drip: float | None = None
    """One byte, then this many seconds, and so on."""
    truncate_after: int | None = None
    """Announces all, sends this many bytes, closes."""
    endless: bool = False
    """No length, and bytes without end."""
    no_ranges: bool = False
    """Always 200 and the whole blob, as Python's own http.server does."""
    status: int | None = None
    redirect: str | None = None
    """Redirects to this base URL."""
    chunked: bool = False
    """No length: every body in chunks, as servers send what they make on the way."""
    packed: bytes | None = None
    """Sends these bytes as a zstd body, in place of every blob, to whoever accepts that."""
    encoding: str | None = None
    """Claims a Content-Encoding that nobody asked for."""
    range_shift: int = 0
    """Content-Range that is off by this many bytes."""
    size_shift: int = 0
    """Claims that every blob has this many bytes more."""
    header_flood: bool = False
    garbage: bool = False
    """Speaks no HTTP at all."""
    only_lists_and_small: bool = False
    """Has nothing above one piece."""


class _Pacer:
    """Lets bytes out at a rate, over all connections."""

    def __init__(self, rate: float | None, stopped: threading.Event) -> None:
        self._rate = rate
        self._stopped = stopped
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    @property
    def chunk(self) -> int:
        return _CHUNK if self._rate is None else max(1, min(_CHUNK, int(self._rate / 50)))

    def wait_turn(self, size: int) -> None:
        if self._rate is None:
            return
        with self._lock:
            begin = max(self._free_at, time.monotonic() - 0.02)
            self._free_at = begin + size / self._rate
            pause = begin - time.monotonic()
        if pause > 0:
            self._stopped.wait(pause)


@dataclass
class BlobServer:
    """One server in threads of this process. `requests` lists (path, Range header) as they came."""

    root: Path
    faults: Faults = field(default_factory=Faults)
    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    connections: int = 0
    body_bytes: int = 0
    corrupted: bool = False

    def __post_init__(self) -> None:
        self.stopped = threading.Event()
        self.stalled = threading.Event()
        self.pacer = _Pacer(self.faults.rate, self.stopped)
        self.lock = threading.Lock()

    def __enter__(self) -> BlobServer:
        server = self

        class Handler(_Handler):
            blobs = server

        self._http = _Server((self.host, self.port), Handler)
        self.port = self._http.server_address[1]
        if self.tls is not None:
            self._http.socket = self.tls.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def plain(self) -> bool:
        """Nothing to do wrong: the kernel sends the file."""
        return self.faults == Faults()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    def find(self, digest: str) -> Path | None:
        for path in (self.root / "blobs" / digest, self.root / "blobs" / digest[:2] / digest):
            if path.is_file():
                return path
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are this server's daily life."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    blobs: BlobServer

    def setup(self) -> None:
        super().setup()
        with self.blobs.lock:
            self.blobs.connections += 1

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        faults = self.blobs.faults
        with self.blobs.lock:
            self.blobs.requests.append((self.path, self.headers.get("Range", "")))
        if faults.latency:
            self.blobs.stopped.wait(faults.latency)
        if faults.stall_after == -1:
            self._hold()
            return
        if faults.garbage:
            self.wfile.write(b"\x16\x03\x01\x00 this is no HTTP\r\n\r\n" * 100)
            self.close_connection = True
            return
        if self._refuses():
            return
        found = _PATH.fullmatch(self.path)
        path = self.blobs.find(found[1]) if found else None
        if path is None or (faults.only_lists_and_small and path.stat().st_size > PIECE):
            self._empty(404)
            return
        if faults.packed is not None and "zstd" in self.headers.get("Accept-Encoding", ""):
            self._send_packed(faults.packed)
            return
        offset, length = self._head(path.stat().st_size)
        if body and length:
            with path.open("rb") as file:
                if self.blobs.plain:
                    self.wfile.flush()
                    sent = self.connection.sendfile(file, offset, length)
                    with self.blobs.lock:
                        self.blobs.body_bytes += sent
                else:
                    self._body(file.fileno(), offset, length)

    def _send_packed(self, packed: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Encoding", "zstd")
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)

    def _refuses(self) -> bool:
        faults = self.blobs.faults
        if faults.header_flood:
            self.send_response(200)
            for number in range(20_000):
                self.send_header(f"X-Flood-{number}", "y" * 100)
            self.end_headers()
            self.close_connection = True
            return True
        if faults.redirect is not None:
            self._empty(302, Location=faults.redirect + self.path)
            return True
        if faults.status is not None:
            self._empty(faults.status)
            return True
        return False

    def _empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _head(self, size: int) -> tuple[int, int]:
        """Send the head; the body's offset and length."""
        faults = self.blobs.faults
        wanted = None if faults.no_ranges else _RANGE.fullmatch(self.headers.get("Range", ""))
        offset, end = 0, size
        if wanted is not None:
            offset = int(wanted[1])
            end = min(size, int(wanted[2]) + 1 if wanted[2] else size)
            if offset >= size:
                self._empty(416)
                return 0, 0
        self.send_response(200 if wanted is None else 206)
        if wanted is not None:
            first, last = offset + faults.range_shift, end - 1 + faults.range_shift
            self.send_header("Content-Range", f"bytes {first}-{last}/{size + faults.size_shift}")
        if faults.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif not faults.endless:
            extra = faults.size_shift if wanted is None else 0
            self.send_header("Content-Length", str(end - offset + extra))
        if faults.encoding is not None:
            self.send_header("Content-Encoding", faults.encoding)
        self.end_headers()
        return offset, end - offset

    def _body(self, file: int, offset: int, length: int) -> None:
        faults = self.blobs.faults
        sent = 0
        for chunk in self._chunks(file, offset, length):
            for limit, act in ((faults.stall_after, self._hold), (faults.truncate_after, self._cut)):
                if limit is not None and sent + len(chunk) > limit:
                    self._send(chunk[: limit - sent])
                    act()
                    return
            self._send(chunk)
            sent += len(chunk)
        if faults.chunked:
            self.connection.sendall(b"0\r\n\r\n")
        while faults.endless and not self.blobs.stopped.is_set():
            self._send(bytes(_CHUNK))

    def _chunks(self, file: int, offset: int, length: int) -> Iterator[bytes]:
        faults = self.blobs.faults
        size = 1 if faults.drip is not None else self.blobs.pacer.chunk
        end = offset + length
        while offset < end:
            # Chunks end at piece borders, so that a piece's first byte is always a chunk's first byte.
            take = min(size, end - offset, PIECE - offset % PIECE)
            chunk = os.pread(file, take, offset)
            if offset % PIECE == 0 and (offset // PIECE in faults.corrupt_pieces or self._is_first_asked(file)):
                chunk = bytes([chunk[0] ^ 1]) + chunk[1:]
            yield chunk
            offset += take

    def _is_first_asked(self, file: int) -> bool:
        if not self.blobs.faults.corrupt_first_asked or os.fstat(file).st_size <= PIECE:
            return False
        with self.blobs.lock:
            first, self.blobs.corrupted = not self.blobs.corrupted, True
        return first

    def _send(self, chunk: bytes) -> None:
        self.blobs.pacer.wait_turn(len(chunk))
        if self.blobs.faults.drip is not None:
            self.blobs.stopped.wait(self.blobs.faults.drip)
        if self.blobs.faults.chunked:
            chunk = b"%x\r\n%b\r\n" % (len(chunk), chunk)
        self.connection.sendall(chunk)
        with self.blobs.lock:
            self.blobs.body_bytes += len(chunk)

    def _hold(self) -> None:
        """Keep the connection open and silent until the client or the server goes."""
        self.close_connection = True
        self.blobs.stalled.set()
        while not self.blobs.stopped.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.05)
            if readable and not self.connection.recv(1024, socket.MSG_DONTWAIT):
                return

    def _cut(self) -> None:
        self.close_connection = True


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted. Prints one line with the URL when it listens."""
    parser = argparse.ArgumentParser(prog="blob_servers", description="a plain static server for blobs")
    parser.add_argument("--root", type=Path, required=True, help="folder with blobs/")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--rate", type=float, metavar="BYTES_PER_S", help="cap over all connections")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--corrupt-first-piece", action="store_true", help="of every blob")
    parser.add_argument("--corrupt-all", action="store_true", help="every piece of every blob")
    parser.add_argument("--corrupt-first-asked", action="store_true", help="the first piece it is asked for, once")
    parser.add_argument("--stall", action="store_true", help="send 64 KiB of each body, then nothing")
    parser.add_argument("--no-ranges", action="store_true")
    parser.add_argument("--status", type=int, help="answer everything with this status")
    given = parser.parse_args(arguments)
    host, _, port = given.listen.rpartition(":")
    faults = Faults(
        rate=given.rate,
        latency=given.latency,
        corrupt_pieces=frozenset(range(100_000 if given.corrupt_all else int(given.corrupt_first_piece))),
        corrupt_first_asked=given.corrupt_first_asked,
        stall_after=64 * 1024 if given.stall else None,
        no_ranges=given.no_ranges,
        status=given.status,
    )
    with suppress(KeyboardInterrupt), BlobServer(given.root, faults, host or "127.0.0.1", int(port)) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
