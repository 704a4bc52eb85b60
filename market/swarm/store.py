"""Where complete blobs live, and the partials of those that are on their way.

    <root>/lock                         one process owns the store
    <root>/blobs/aa/<digest>            complete, verified, 0444
    <root>/partial/<ref digest>.data    pieces so far; .bits is their bitmap
    <root>/pins/<digest>                one empty file per pin
    <root>/tmp/                         emptied on opening
    <root>/sources.json                 what is remembered of origins and peers

Guarantees: a file appears under blobs/ only after its bytes hashed to its name and are durable (write to tmp/ ->
fchmod 0444 and fsync -> rename -> fsync of the folder); what is pinned, a root or leased is never collected. Methods
block on the disk: call the long ones from a worker thread. It refuses to know sources, publishers and apps.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final
from weakref import WeakValueDictionary

import trio
from blake3 import blake3

from market.errors import Problem
from market.model import BlobRef, Digest
from market.swarm.collecting import Collected, Stored, candidates, needed
from market.swarm.disk import Disk, told
from market.swarm.errors import DamagedBlob, NotStored, SizeContradicted, StoreLocked
from market.swarm.files import chunks, hash_file
from market.swarm.incoming import Incoming, Receiving
from market.swarm.partial import Partial
from market.swarm.pieces import PieceHasher, PieceTable, ref_digest, table_from_list
from market.swarm.quality import MAX_BOOK_BYTES, SourceBook

_SOURCES: Final = "sources.json"


def open_store(root: Path, *, disk: Disk | None = None) -> Store:
    """Open (or create) the store below `root`. Raises StoreLocked, StoreUnusable, StoreFull."""
    return Store(root, disk or Disk())


class Store:
    """An open store. `has`, `path` and `lease` may be called from any thread."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root = root
        self._disk = disk
        self._blobs = root / "blobs"
        self._folders = {name: self._blobs / name for name in (f"{number:02x}" for number in range(256))}
        self._partial = root / "partial"
        self._pins = root / "pins"
        self._tmp = root / "tmp"
        self._leases: Counter[Digest] = Counter()
        self._lease_lock = threading.Lock()
        self._open_partials: dict[Digest, Partial] = {}
        self._shared_partials: dict[Digest, Partial] = {}
        self._incoming = Incoming(disk, self._tmp)
        self._turns: WeakValueDictionary[Digest, trio.Lock] = WeakValueDictionary()
        with told(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_fd = self._take_lock()
        try:
            for folder in (self._blobs, self._partial, self._pins, self._tmp):
                disk.make_folder(folder)
            self._sweep()
            self.sources = self._load_sources()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; the store is dead afterwards."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    # --- complete blobs

    def has(self, digest: Digest) -> bool:
        # Text, not a Path: asked for each of thousands of small blobs, and making a Path costs more than the question.
        return os.path.exists(f"{self._blobs}/{digest.hex[:2]}/{digest.hex}")

    def path(self, digest: Digest) -> Path:
        """The read-only file of a complete blob. Raises NotStored."""
        place = self._place(digest)
        if not place.exists():
            raise NotStored("this blob is not in the store", where=digest.hex, remedy="fetch it first")
        return place

    def size(self, digest: Digest) -> int:
        with told(self._place(digest)):
            return self.path(digest).stat().st_size

    def holds(self, ref: BlobRef) -> bool:
        """True if the blob is complete here. Raises SizeContradicted when its size is not the one that was signed."""
        if not self.has(ref.blake3):
            return False
        actual = self.size(ref.blake3)
        if actual != ref.size:
            raise SizeContradicted(f"the signed size is {ref.size}, the blob has {actual} bytes", where=ref.blake3.hex)
        return True

    def list(self) -> Iterator[Stored]:
        """Every complete blob; foreign files are passed over."""
        for folder in sorted(self._blobs.iterdir()):
            if not folder.is_dir():
                continue
            for file in sorted(folder.iterdir()):
                digest = _digest_of(file.name)
                if digest is not None and folder.name == digest.hex[:2]:
                    state = file.stat()
                    yield Stored(digest, state.st_size, state.st_mtime)

    def read_bytes(self, digest: Digest, limit: int) -> bytes:
        """The bytes of a small blob. Raises NotStored, and Problem when it is larger than `limit` bytes."""
        path = self.path(digest)
        with told(path), path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Problem(f"the blob is larger than {limit} bytes", where=digest.hex)
        return data

    def add_bytes(self, data: bytes) -> BlobRef:
        """Store `data` durably and, above 1 MiB, its piece list."""
        hasher = PieceHasher()
        hasher.update(data)
        ref, pieces = hasher.finish()
        self.put(ref.blake3, data)
        if pieces is not None:
            self.add_list(pieces)
        return ref

    def add_list(self, raw: bytes) -> None:
        """Store a piece list under its own digest, whatever its length."""
        self.put(Digest.from_bytes(blake3(raw).digest()), raw)

    def put(self, digest: Digest, data: bytes | bytearray | memoryview) -> None:
        """Store bytes that are known to hash to `digest`; they are hashed again all the same. Raises DamagedBlob."""
        self.put_many([(digest, data)])

    def put_many(self, blobs: Sequence[tuple[Digest, bytes | bytearray | memoryview]]) -> None:
        """`put` for several at once: for each the same order of writes, but one fsync for all that share a folder.

        Raises DamagedBlob before anything is stored.
        """
        for digest, data in blobs:
            if blake3(data).digest() != digest.raw:
                raise DamagedBlob("these bytes do not hash to that digest", where=digest.hex)
        missing = []
        for digest, data in blobs:
            if self.has(digest):
                self.touch(digest)
            else:
                missing.append((self._folder(digest), digest.hex, data))
        self._incoming.bring(missing)

    def add_file(self, path: Path) -> BlobRef:
        """Copy a file into the store while hashing it, and store its piece list. Raises StoreFull, StoreUnusable."""
        hasher = PieceHasher()
        with self.receiving() as receiving:
            for chunk in chunks(path):
                receiving.write(chunk)
                hasher.update(chunk)
            ref, pieces = hasher.finish()
            receiving.keep(ref.blake3)
        if pieces is not None:
            self.add_list(pieces)
        return ref

    @contextmanager
    def receiving(self) -> Iterator[Receiving]:
        """A new file for bytes whose digest is known only at their end; gone unless it is kept."""
        with self._incoming.temporary() as (fd, path):
            yield Receiving(self._disk, fd, path, lambda digest: self._take(fd, path, digest))

    def link(self, digest: Digest, dest: Path) -> None:
        """Give a complete blob a second name: a hard link, or a copy where the file system has none. Idempotent."""
        source = self.path(digest)
        self.touch(digest)
        with told(dest):
            dest.unlink(missing_ok=True)
            with suppress(OSError):
                os.link(source, dest)
                return
            fd = os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                offset = 0
                for chunk in chunks(source):
                    self._disk.pwrite(fd, chunk, offset, dest)
                    offset += len(chunk)
                self._disk.seal(fd, dest)
            finally:
                os.close(fd)

    def verify(self, ref: BlobRef) -> None:
        """Hash a stored blob again. Raises NotStored, SizeContradicted, or DamagedBlob after removing it."""
        if not self.holds(ref):
            raise NotStored("this blob is not in the store", where=ref.blake3.hex, remedy="fetch it first")
        self.verify_whole(ref.blake3)

    def verify_whole(self, digest: Digest) -> None:
        """The same for a blob of which only the digest is known. Raises NotStored, DamagedBlob."""
        found, _ = hash_file(self.path(digest))
        if found.blake3 != digest:
            self._disk.unlink(self._place(digest))
            raise DamagedBlob(
                "the stored bytes were damaged, and are removed", where=digest.hex, remedy="fetch the blob again"
            )

    # --- partials

    def table(self, ref: BlobRef) -> PieceTable | None:
        """The verified piece table of `ref` if its piece list is stored here; a damaged list is removed.

        Raises BadPieceList when the list that the reference names can not be the list of a blob of that size.
        """
        if ref.pieces is None or not self.has(ref.pieces):
            return None
        with told(self._place(ref.pieces)):
            raw = self._place(ref.pieces).read_bytes()
        if blake3(raw).digest() != ref.pieces.raw:
            self._disk.unlink(self._place(ref.pieces))
            return None
        self.touch(ref.pieces)
        return table_from_list(ref, raw)

    def open_partial(self, ref: BlobRef, table: PieceTable, *, shared: bool = False) -> Partial:
        """The partial of exactly this reference, with whatever is verified of it. Raises StoreFull, StoreUnusable.

        `shared`: its verified pieces may be served to others while it is open.
        """
        name = ref_digest(ref)
        partial = Partial(self._disk, self._partial, name, table, on_close=lambda: self._forget_partial(name))
        self._open_partials[name] = partial
        if shared:
            self._shared_partials[name] = partial
        return partial

    def shared_partial(self, name: Digest) -> Partial | None:
        """The open partial of the reference `name` (its `ref_digest`), if others may have its pieces. Any thread."""
        return self._shared_partials.get(name)

    def _forget_partial(self, name: Digest) -> None:
        self._open_partials.pop(name, None)
        self._shared_partials.pop(name, None)

    def publish(self, ref: BlobRef, partial: Partial) -> None:
        """Give a sealed partial, whose whole digest the caller has verified, its place."""
        place = self._place(ref.blake3)
        self._disk.make_folder(place.parent)
        partial.publish(place)

    def turn(self, digest: Digest) -> trio.Lock:
        """One fetch at a time per digest: whoever comes second finds the blob there."""
        return self._turns.setdefault(digest, trio.Lock())

    # --- what is remembered of sources

    def save_sources(self) -> None:
        """Write the book of sources; losing it costs no more than meeting them anew. Raises StoreFull."""
        with self._incoming.temporary() as (fd, temporary):
            self._disk.pwrite(fd, self.sources.to_bytes(), 0, temporary)
            self._disk.rename(temporary, self.root / _SOURCES)

    def _load_sources(self) -> SourceBook:
        path = self.root / _SOURCES
        if not path.exists():
            return SourceBook()
        with told(path), path.open("rb") as file:
            return SourceBook.from_bytes(file.read(MAX_BOOK_BYTES + 1))

    # --- what stays

    def pin(self, digest: Digest) -> None:
        """Keep a blob until `unpin`, durably, whether it is here yet or not."""
        path = self._pins / digest.hex
        if not path.exists():
            os.close(self._disk.create(path))
            self._disk.sync_folder(self._pins)

    def unpin(self, digest: Digest) -> None:
        self._disk.unlink(self._pins / digest.hex)
        self._disk.sync_folder(self._pins)

    def pins(self) -> frozenset[Digest]:
        digests = (_digest_of(path.name) for path in self._pins.iterdir())
        return frozenset(digest for digest in digests if digest is not None)

    @contextmanager
    def lease(self, digest: Digest) -> Iterator[Path]:
        """Hold a blob while it is being read or linked: it is not collected meanwhile. Raises NotStored."""
        with self._lease_lock:
            path = self.path(digest)
            self._leases[digest] += 1
        try:
            yield path
        finally:
            with self._lease_lock:
                self._leases[digest] -= 1
                if not self._leases[digest]:
                    del self._leases[digest]

    def touch(self, digest: Digest) -> None:
        """Note that a blob was used now, for the least-recently-used order."""
        with suppress(FileNotFoundError), told(self._place(digest)):
            os.utime(self._place(digest))

    def gc(self, roots: Iterable[Digest | BlobRef], quota: int, *, now: float | None = None) -> Collected:
        """Remove what nothing needs, least recently used first, until at most `quota` bytes are used (R-SW6).

        `roots` are the blobs of installed apps; a BlobRef keeps its piece list too. `now` is Unix seconds.
        """
        complete = dict.fromkeys(self.list(), self._remove_blob)
        every = complete | dict.fromkeys(self._partials(), self._remove_partial)
        used = sum(each.size for each in every)
        removed: list[Stored] = []
        for each in candidates(every, self.pins() | needed(roots), time.time() if now is None else now):
            if used <= quota:
                break
            if every[each](each.digest):
                removed.append(each)
                used -= each.size
        return Collected(tuple(each.digest for each in removed), sum(each.size for each in removed), used)

    # --- inside

    def _partials(self) -> Iterator[Stored]:
        """Partials under the digest of their reference, with the bytes they take on disk. stat(2): st_blocks"""
        for file in self._partial.glob("*.data"):
            name = _digest_of(file.stem)
            if name is not None:
                state = file.stat()
                yield Stored(name, state.st_blocks * 512, state.st_mtime)

    def _remove_partial(self, name: Digest) -> bool:
        if name in self._open_partials:
            return False
        for suffix in (".bits", ".data"):
            self._disk.unlink(self._partial / f"{name.hex}{suffix}")
        return True

    def _remove_blob(self, digest: Digest) -> bool:
        with self._lease_lock:
            if self._leases[digest]:
                return False
            self._disk.unlink(self._place(digest))
            return True

    def _place(self, digest: Digest) -> Path:
        return self._folder(digest) / digest.hex

    def _folder(self, digest: Digest) -> Path:
        return self._folders[digest.hex[:2]]

    def _take(self, fd: int, temporary: Path, digest: Digest) -> None:
        """Give a temporary file, whose digest was verified, its place."""
        if self.has(digest):
            self.touch(digest)
        else:
            self._incoming.place(fd, temporary, self._place(digest))

    def _take_lock(self) -> int:
        path = self.root / "lock"
        with told(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as busy:
            os.close(fd)
            raise StoreLocked(
                "another process owns this store", where=str(self.root), remedy="ask the running node, or stop it"
            ) from busy
        return fd

    def _sweep(self) -> None:
        """Remove what a kill left behind: temporary files, and bitmaps whose data became a blob."""
        for path in [*self._tmp.iterdir(), *self._partial.glob("*.bits.tmp")]:
            self._disk.unlink(path)
        for bits in self._partial.glob("*.bits"):
            if not bits.with_suffix(".data").exists():
                self._disk.unlink(bits)


def _digest_of(name: str) -> Digest | None:
    return Digest(name) if len(name) == 64 and set(name) <= set("0123456789abcdef") else None
