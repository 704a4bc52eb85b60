"""libtorrent as a peer of the benchmark. Runs in an environment of its own, with libtorrent and nothing else.

    python with_libtorrent.py FOLDER < {"name", "data", "web_seeds", "seeds"}     prints {"seconds", "wasted"}

The torrent is made of the file `data` (SHA-1 of 1 MiB pieces, BEP 3) before the clock starts; `web_seeds` are URLs of
that file (BEP 19), `seeds` a number of BitTorrent seeds in this process, over loopback.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import libtorrent as lt  # type: ignore[import-not-found]  # only in that environment

PIECE = 1024 * 1024
DEADLINE = 180.0


def _session(port: int) -> Any:
    return lt.session(
        {
            "listen_interfaces": f"127.0.0.1:{port}",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "allow_multiple_connections_per_ip": True,
            "urlseed_timeout": 2,
            "urlseed_wait_retry": 1,
            "urlseed_max_request_bytes": 16 * PIECE,
            "connection_speed": 500,
            "alert_mask": lt.alert.category_t.status_notification | lt.alert.category_t.error_notification,
        }
    )


def _torrent(data: Path, name: str) -> Any:
    files = lt.file_storage()
    files.add_file(name, data.stat().st_size)
    made = lt.create_torrent(files, PIECE, lt.create_torrent.v1_only)
    folder = data.parent
    if data.name != name:
        raise SystemExit("the data file is named as in the torrent")
    lt.set_piece_hashes(made, str(folder))
    return lt.torrent_info(made.generate())


def main() -> None:
    """See the module's docstring."""
    folder = Path(sys.argv[1])
    given = json.load(sys.stdin)
    info = _torrent(Path(given["data"]), given["name"])
    seeding = []
    for _ in range(given.get("seeds", 0)):
        session = _session(0)
        session.add_torrent(
            {"ti": info, "save_path": str(Path(given["data"]).parent), "flags": lt.torrent_flags.seed_mode}
        )
        seeding.append(session)
    session = _session(0)
    began = time.perf_counter()
    handle = session.add_torrent({"ti": info, "save_path": str(folder), "url_seeds": given["web_seeds"]})
    for seed in seeding:
        handle.connect_peer(("127.0.0.1", seed.listen_port()))
    while not handle.status().is_seeding:
        session.wait_for_alert(5)
        session.pop_alerts()
        if time.perf_counter() - began > DEADLINE:
            print(json.dumps({"failed": f"not done in {DEADLINE:g} s"}), flush=True)
            return
    seconds = time.perf_counter() - began
    status = handle.status()
    print(
        json.dumps({"seconds": seconds, "wasted": status.total_failed_bytes + status.total_redundant_bytes}), flush=True
    )


if __name__ == "__main__":
    main()
