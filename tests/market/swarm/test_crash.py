"""Kills and power cuts between any two writes: nothing that was verified is lost, nothing wrong is trusted (R-SW4)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from blake3 import blake3

from market.model import PIECE_SIZE, BlobRef, Digest
from market.swarm import hash_file, open_store
from market.swarm.disk import Disk
from market.swarm.pieces import PieceTable
from tests.fakes.blob_servers import BlobServer
from tests.market.swarm.published import publish, some_bytes


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a SIGKILL loses nothing that was written, synced or not."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_fetch_killed_before_any_of_its_writes_goes_on_from_there(tmp_path: Path, memory: Path) -> None:  # R-SW4
    ref = publish(tmp_path / "published", some_bytes(3 * PIECE_SIZE + 99))
    assert ref.pieces is not None
    with BlobServer(tmp_path / "published") as server:
        child = subprocess.run(
            [
                *(sys.executable, "-m", "tests.market.swarm.killed", str(memory / "rounds")),
                *(server.url, ref.blake3.hex, str(ref.size), ref.pieces.hex),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    assert child.returncode == 0, child.stdout + child.stderr
    rounds = [json.loads(line) for line in child.stdout.splitlines()]
    assert len(rounds) > 20, "every write is a place to die"
    for each in rounds:
        whole = each["resumed"] == each["fetched"] == 0  # it died after the blob had its place
        assert whole or each["resumed"] >= min(each["written"] * PIECE_SIZE, ref.size), each
        assert each["fetched"] <= ref.size - each["resumed"] + 4 * 32, each
    by_piece = [each for each in rounds if each["counted"] == "pieces"]
    assert [each["written"] for each in by_piece] == [0, 1, 2, 3], "it died before each of the four pieces was written"
    assert rounds[0]["written"] == 0, "it died before the first was written"
    rest = [each["written"] for each in rounds if each["counted"] == "rest"]
    assert rest == [4] * len(rest) != [], "it died after the last was written"


# --- power cuts: what was not synced is gone


@dataclass(eq=False)
class Inode:
    """A file: what it holds, and what of that has reached the platter."""

    live: bytearray = field(default_factory=bytearray)
    durable: bytes = b""


class RecordingDisk(Disk):
    """The real disk, which also keeps a log of its steps."""

    def __init__(self) -> None:
        self.log: list[Callable[[PowerCut], None]] = []

    def create(self, path: Path) -> int:
        self.log.append(lambda world: world.create(path))
        return super().create(path)

    def reopen(self, path: Path) -> int:
        self.log.append(lambda world: world.create(path))
        return super().reopen(path)

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int, path: Path) -> None:
        copy = bytes(data)
        self.log.append(lambda world: world.write(path, copy, offset))
        super().pwrite(fd, data, offset, path)

    def sync_data(self, fd: int, path: Path) -> None:
        self.log.append(lambda world: world.sync(path))
        super().sync_data(fd, path)

    def seal(self, fd: int, path: Path) -> None:
        self.log.append(lambda world: world.sync(path))
        super().seal(fd, path)

    def rename(self, source: Path, target: Path) -> None:
        self.log.append(lambda world: world.rename(source, target))
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self.log.append(lambda world: world.sync_folder(folder))
        super().sync_folder(folder)

    def unlink(self, path: Path) -> None:
        self.log.append(lambda world: world.unlink(path))
        super().unlink(path)


class PowerCut:
    """A file system's promises and no more: data lasts from its sync on, names from their folder's sync on."""

    def __init__(self) -> None:
        self.names: dict[Path, Inode] = {}
        self.durable_names: dict[Path, Inode] = {}

    def create(self, path: Path) -> None:
        self.names.setdefault(path, Inode())

    def write(self, path: Path, data: bytes, offset: int) -> None:
        live = self.names[path].live
        live.extend(bytes(max(0, offset + len(data) - len(live))))
        live[offset : offset + len(data)] = data

    def sync(self, path: Path) -> None:
        self.names[path].durable = bytes(self.names[path].live)

    def rename(self, source: Path, target: Path) -> None:
        self.names[target] = self.names.pop(source)

    def unlink(self, path: Path) -> None:
        self.names.pop(path, None)

    def sync_folder(self, folder: Path) -> None:
        gone = [path for path in self.durable_names if path.parent == folder]
        for path in gone:
            del self.durable_names[path]
        self.durable_names |= {path: inode for path, inode in self.names.items() if path.parent == folder}

    def survivors(self, how: str) -> dict[Path, bytes]:
        """What is found after the cut. Which of the unsynced steps made it is up to the disk: three extremes."""
        match how:
            case "nothing unsynced":
                return {path: inode.durable for path, inode in self.durable_names.items()}
            case "names but no data":
                return {p: i.durable + bytes(len(i.live) - len(i.durable)) for p, i in self.names.items()}
            case _:
                return {path: bytes(inode.live) for path, inode in self.names.items()}


PIECE = 1000
DATA = some_bytes(4 * PIECE + 77, "small pieces, so that a hundred crashes are quick")
TABLE = PieceTable(
    Digest.from_bytes(blake3(DATA).digest()),
    len(DATA),
    b"".join(blake3(DATA[at : at + PIECE]).digest() for at in range(0, len(DATA), PIECE)),
    PIECE,
)
REF = BlobRef(TABLE.whole, len(DATA))
PINNED = Digest("77" * 32)
TOGETHER = [(Digest.from_bytes(blake3(data).digest()), data) for data in (b"11", b"13", b"one in another folder")]
"""Two of them share a folder."""


def _live(root: Path, disk: Disk) -> None:
    """A store's life: a blob is added, another comes piece by piece with checkpoints, a pin is set."""
    with open_store(root, disk=disk) as store:
        store.add_bytes(b"added at once")
        store.put_many(TOGETHER)
        with store.open_partial(REF, TABLE) as partial:
            for index in (1, 0, 4, 3, 2):
                partial.write(index, memoryview(DATA)[index * PIECE : (index + 1) * PIECE])
                if index != 0:
                    partial.checkpoint()
            partial.seal()
            store.publish(REF, partial)
        store.pin(PINNED)


@pytest.mark.parametrize("how", ["nothing unsynced", "names but no data", "everything"])
def test_a_power_cut_after_any_step_leaves_nothing_wrongly_trusted(tmp_path: Path, how: str) -> None:  # R-SW4, R-SW1
    disk = RecordingDisk()
    before = tmp_path / "before"
    _live(before, disk)
    resumed, together = [], []
    for steps in range(len(disk.log) + 1):
        world = PowerCut()
        for step in disk.log[:steps]:
            step(world)
        root = tmp_path / f"after-{steps}"
        for path, content in world.survivors(how).items():
            place = root / path.relative_to(before)
            place.parent.mkdir(parents=True, exist_ok=True)
            if content is not None and not place.is_dir():
                place.write_bytes(content)
        with open_store(root) as store:
            for blob in store.list():
                assert hash_file(store.path(blob.digest))[0].blake3 == blob.digest, steps
            if not store.has(TABLE.whole):
                with store.open_partial(REF, TABLE) as partial:
                    assert partial.damaged() == [], steps
                    resumed.append(len(partial.have))
            assert store.pins() <= {PINNED}
            together.append(sum(store.has(digest) for digest, _ in TOGETHER))
    assert resumed == sorted(resumed), "what was recorded once stays"
    assert max(resumed) == 5
    assert together == sorted(together), "what has its place keeps it"
    assert together[-1] == len(TOGETHER)
    assert os.listdir(before / "tmp") == []
