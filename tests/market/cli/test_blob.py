"""`archy blob` as its user runs it."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.blob_servers import BlobServer, Faults
from tests.market.cli.archy import Archy
from tests.market.swarm.published import publish, some_bytes


def test_a_blob_is_fetched_written_kept_and_let_go_of(tmp_path: Path) -> None:
    archy = Archy(tmp_path / "home")
    ref = publish(tmp_path / "www", some_bytes(5000))
    target = tmp_path / "copy"
    with BlobServer(tmp_path / "www") as server:
        got = archy("blob", "get", ref.blake3.hex, "--origin", server.url, "-o", str(target), "--json")
    assert got.code == 0, got.err
    assert got.json["blob"] == ref.to_json()
    assert target.read_bytes() == some_bytes(5000)
    listed = archy("blob", "ls")
    assert f"{ref.blake3}  4.9 KiB  pinned" in listed.out
    assert archy("blob", "verify").out.strip() == f"{ref.blake3}  ok"
    assert archy("blob", "unpin", ref.blake3.hex).code == 0
    assert "0 removed" in archy("blob", "gc", "--quota", "1GiB").out


def test_a_blob_by_its_digest_alone_is_told_about_while_it_comes(tmp_path: Path) -> None:
    archy = Archy(tmp_path / "home")
    ref = publish(tmp_path / "www", some_bytes(2_000_000))
    with BlobServer(tmp_path / "www", Faults(rate=5e6)) as server:
        got = archy("blob", "get", ref.blake3.hex, "--origin", server.url)
    assert (got.code, "verified as a whole" in got.out) == (0, True)
    assert "1.9 MiB of 1.9 MiB" in got.err
    assert "MB/s from" in got.err
    files = [tmp_path / "one", tmp_path / "two"]
    for number, file in enumerate(files):
        file.write_text(str(number))
    assert "2 of 2 files" in archy("blob", "add", *map(str, files)).err


def test_a_wrong_word_is_told_with_a_remedy(tmp_path: Path) -> None:
    archy = Archy(tmp_path / "home")
    size = archy("blob", "gc", "--quota", "lots")
    assert (size.code, "20GiB" in size.err) == (2, True)
    digest = archy("blob", "get", "AB" * 32)
    assert (digest.code, "64 hexadecimal digits, in lower case" in digest.err) == (2, True)
    nobody = archy("blob", "get", "ab" * 32)
    assert (nobody.code, "--origin" in nobody.err) == (2, True)
