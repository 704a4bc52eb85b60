"""How fast events come in: from a relay on loopback to verified, and to committed rows with proofs, index and search.

    python -m bench.ingest [--events 20000 --publishers 20]

Prints a table and writes bench/out/ingest.json. In one run, from one relay and over the same events: nostr-sdk's client
receiving and verifying, this program verifying, and this program storing. The floor is libsecp256k1's verification
alone, with parsed keys and known digests, on one core. Each client is a process of its own; the relay is another one,
which holds the events ready to send. Memory is what the storing process's resident set gained, half way and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from coincurve import PublicKeyXOnly
from websockets.trio.server import ServerConnection, serve

from market.discovery import Discovery, Event, Fate, Index, Outcome
from market.discovery.documents import parse_document, tags
from market.discovery.events import DOCUMENT_KIND, event_id, sign_event
from market.discovery.examination import Answer, Candidate
from market.discovery.reasons import Refusal
from market.identity import Keyring, add_proof, canonical_bytes
from market.identity.didkey import decode_private

OUT: Final = Path(__file__).parent / "out" / "ingest.json"
NOW: Final = 1_800_000_000
FLOOR_EVENTS: Final = 5000
FETCHED_AT_ONCE: Final = 5000
THEIRS: Final = 10_000
"""Events that nostr-sdk's client is measured with: it refuses more in one answer, and a rate needs no more."""


# Events


def make_events(folder: Path, count: int, publishers: int) -> list[Event]:
    """Identities, then manifests of many apps, one second apart."""
    events: list[Event] = []
    rings = [Keyring.create(folder / f"p{number}", now=NOW) for number in range(publishers)]
    for ring in rings:
        events.append(_event(ring, ring.identity_document()))
    seeds = [decode_private((ring.folder / "release.key").read_text().strip()) for ring in rings]
    for number in range(count):
        ring, seed = rings[number % publishers], seeds[number % publishers]
        body = {
            "archy": 1, "type": "manifest", "publisher": ring.did, "name": f"app{number}", "seq": 1,
            "identity": ring.identity_digest.hex, "made": NOW - count + number, "title": f"App {number}",
            "summary": f"Keeps your {WORDS[number % len(WORDS)]} at home, number {number}", "categories": ["data"],
            "permissions": {"internet": "none"}, "homepage": "", "source": "",
        }  # fmt: skip
        events.append(_event(ring, add_proof(body, seed, created=NOW)))
    return events


WORDS: Final = ("photos", "music", "letters", "maps", "recipes", "money", "notes", "films")


def _event(ring: Keyring, body: dict[str, Any]) -> Event:
    document, digest = parse_document(body)
    content = canonical_bytes(body).decode()
    return sign_event(ring, created_at=document.made, kind=DOCUMENT_KIND, tags=tags(document, digest), content=content)


# The relay


def by_type_of(events_file: Path) -> dict[str, tuple[list[int], list[bytes]]]:
    events = [msgspec.json.decode(line, type=Event) for line in events_file.read_bytes().splitlines()]
    found: dict[str, tuple[list[int], list[bytes]]] = {}
    for event in sorted(events, key=lambda one: one.created_at):
        times, raws = found.setdefault(event.tag("t")[0], ([], []))
        times.append(event.created_at)
        raws.append(event.to_bytes())
    return found


async def relay(by_type: dict[str, tuple[list[int], list[bytes]]]) -> None:
    """Serves the events, newest first, to one question after the other."""

    async def answer(socket: ServerConnection) -> None:
        async for message in socket:
            kind, name, *rest = json.loads(message)
            if kind.startswith("NEG"):
                await socket.send(json.dumps(["NOTICE", "unknown command"]))
            if kind != "REQ":
                continue
            for wanted in rest:
                for type_ in wanted.get("#t", ()):
                    times, raws = by_type.get(type_, ([], []))
                    end = bisect_right(times, wanted.get("until", math.inf))
                    start = max(bisect_left(times, wanted.get("since", 0)), end - wanted.get("limit", len(times)))
                    head = f'["EVENT","{name}",'.encode()
                    for high in range(end, start, -200):
                        some = raws[max(start, high - 200) : high]
                        # Frames by hand, many in one write, so that the relay is not what is measured.
                        async with socket.send_context():
                            socket.protocol.writes.append(b"".join(_frame(head, raw) for raw in reversed(some)))
            await socket.send(f'["EOSE","{name}"]')

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}", flush=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, answer, listeners=listeners, compression=None))


def _frame(head: bytes, raw: bytes) -> bytes:
    """A whole text message (RFC 6455, section 5.2), of 126 bytes to 64 KiB."""
    return b"\x81\x7e" + (len(head) + len(raw) + 1).to_bytes(2, "big") + head + raw + b"]"


# The clients


class VerifyOnly(Index):
    """Everything up to the signature, and nothing after it."""

    def unstored(self, batch: Sequence[Candidate]) -> list[bool]:
        return [False] * len(batch)

    def commit(self, batch: Sequence[Candidate], new: Sequence[bool], answers: Sequence[Answer]) -> list[Outcome]:
        return [
            Outcome(Fate.ACCEPTED) if one.forged is None else Refusal(one.forged, one.detail).outcome for one in answers
        ]


async def ours(url: str, folder: Path, *, store: bool) -> dict[str, float]:
    index = (Index if store else VerifyOnly)(folder / "market.db", lambda: NOW + 60.0)
    half: list[int] = []
    before = resident()
    with index:
        discovery = Discovery(index, [url], lambda: NOW + 60.0)
        began, cpu = time.perf_counter(), spent()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_sample, half)
            report = await discovery.sync(3600)
            nursery.cancel_scope.cancel()
        seconds = time.perf_counter() - began
        assert report.answered == (url,), report.relays
        [state] = report.relays
    return {
        "events": state.accepted,
        "seconds": seconds,
        "cpu": spent() - cpu,
        "half_mib": (half[len(half) // 2] - before) / 2**20 if half else 0.0,
        "end_mib": (resident() - before) / 2**20,
        "peak_mib": most_resident() / 2**20,
        "database_mib": (folder / "market.db").stat().st_size / 2**20,
    }


async def _sample(found: list[int]) -> None:
    while True:
        await trio.sleep(0.25)
        found.append(resident())


def spent() -> float:
    """CPU seconds of this process and of those it has ended."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def resident() -> int:
    """Bytes (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def most_resident() -> int:
    """Bytes at the most so far (proc(5), VmHWM; getrusage(2) would count what was before exec)."""
    [line] = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


async def theirs(url: str, count: int) -> dict[str, float]:
    import nostr_sdk

    nostr_sdk.uniffi_set_event_loop(asyncio.get_running_loop())
    client = nostr_sdk.Client()
    await client.add_relay(nostr_sdk.RelayUrl.parse(url))
    await client.connect()
    began, cpu = time.perf_counter(), time.process_time()
    found = 0
    for first in range(NOW - min(count, THEIRS), NOW, FETCHED_AT_ONCE):  # it gives up on answers that are larger
        wanted = (
            nostr_sdk.Filter()
            .kind(nostr_sdk.Kind(DOCUMENT_KIND))
            .hashtag("archy1-manifest")
            .since(nostr_sdk.Timestamp.from_secs(first))
            .until(nostr_sdk.Timestamp.from_secs(min(first + FETCHED_AT_ONCE, NOW) - 1))
        )
        target = nostr_sdk.ReqTarget.auto([wanted])
        found += len(await client.fetch_events(target, timedelta(seconds=3600)))
    seconds = time.perf_counter() - began
    return {"events": found, "seconds": seconds, "cpu": time.process_time() - cpu}


def floor(events: Sequence[Event]) -> float:
    """Verifications in a second by libsecp256k1 alone, on one core."""
    keys = {one.pubkey: PublicKeyXOnly(bytes.fromhex(one.pubkey)) for one in events}
    work = [
        (
            keys[one.pubkey],
            bytes.fromhex(one.sig),
            event_id(one.pubkey, one.created_at, one.kind, one.tags, one.content),
        )
        for one in events[:FLOOR_EVENTS]
    ]
    began = time.perf_counter()
    for key, signature, digest in work:
        if not key.verify(signature, digest):
            raise SystemExit("a signature made here does not verify")
    return len(work) / (time.perf_counter() - began)


# One run


@contextmanager
def relay_process(events_file: Path) -> Iterator[str]:
    argv = [sys.executable, "-m", "bench.ingest", "--role", "relay", "--file", str(events_file)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def measured(role: str, url: str, count: int) -> dict[str, float]:
    argv = [sys.executable, "-m", "bench.ingest", "--role", role, "--url", url, "--events", str(count)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=3600, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_role(role: str, url: str, file: Path, count: int) -> None:
    match role:
        case "relay":
            trio.run(relay, by_type_of(file))
        case "theirs":
            print(json.dumps(asyncio.run(theirs(url, count))), flush=True)
            os._exit(0)  # the bindings' threads outlive the loop
        case _:
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps(trio.run(partial(ours, url, Path(folder), store=role == "store"))), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.ingest")
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--publishers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many runs: noise only ever adds")
    parser.add_argument("--role", default="")
    parser.add_argument("--url", default="")
    parser.add_argument("--file", type=Path, default=Path())
    given = parser.parse_args()
    if given.role:
        run_role(given.role, given.url, given.file, given.events)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        events = make_events(folder, given.events, given.publishers)
        file = folder / "events.jsonl"
        file.write_bytes(b"\n".join(one.to_bytes() for one in events))
        bare = floor(events)
        del events
        best: dict[str, dict[str, float]] = {}
        for _ in range(given.rounds):
            for role in ("theirs", "verify", "store"):
                with relay_process(file) as url:
                    found = measured(role, url, given.events)
                wanted = min(given.events, THEIRS) if role == "theirs" else given.events
                if found["events"] < wanted:
                    raise SystemExit(f"{role} took {found['events']:.0f} of {wanted} events")
                if role not in best or found["seconds"] < best[role]["seconds"]:
                    best[role] = found
    report(bare, best)


def report(bare: float, best: dict[str, dict[str, float]]) -> None:
    rate = {role: found["events"] / found["seconds"] for role, found in best.items()}
    rows: list[tuple[str, float, str, float | None, str]] = [
        ("libsecp256k1 alone, one core", bare, "events/s", None, "higher"),
        ("nostr-sdk client, verified", rate["theirs"], "events/s", None, "higher"),
        ("verified", rate["verify"], "events/s", None, "higher"),
        ("verified / nostr-sdk", rate["verify"] / rate["theirs"], "x", 1.5, "higher"),
        ("verified / floor of one core", rate["verify"] / bare, "x", None, "higher"),
        ("verified, per CPU second", best["verify"]["events"] / best["verify"]["cpu"], "events/s", None, "higher"),
        ("nostr-sdk, per CPU second", best["theirs"]["events"] / best["theirs"]["cpu"], "events/s", None, "higher"),
        ("stored", rate["store"], "manifests/s", 5000, "higher"),
        ("stored, per CPU second", best["store"]["events"] / best["store"]["cpu"], "manifests/s", None, "higher"),
        ("memory gained half way", best["store"]["half_mib"], "MiB", None, "lower"),
        ("memory gained at the end", best["store"]["end_mib"], "MiB", None, "lower"),
        ("largest resident set while storing", best["store"]["peak_mib"], "MiB", 256, "lower"),
        ("database", best["store"]["database_mib"], "MiB", None, "lower"),
    ]
    for name, value, unit, goal, _ in rows:
        print(f"{name:38} {value:12,.2f} {unit:12} {'' if goal is None else f'goal {goal:,}'}")
    figures = [{"name": n, "value": v, "unit": u, "goal": g, "better": b} for n, v, u, g, b in rows]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"figures": figures}, indent=1))


if __name__ == "__main__":
    main()
