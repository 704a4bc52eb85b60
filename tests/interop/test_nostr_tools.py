"""Events of nostr-tools (the JavaScript library) against ours, both ways.

It comes from npm into a cache folder. Where npm or its registry is missing, these tests are skipped and say so;
ARCHY_CACHE names the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from market.discovery.events import Event, decode_event, sign_event, verify
from market.discovery.reasons import Reason, Refusal
from tests.market.discovery.publishers import NOW, NostrKey, Publisher

CACHE = Path(os.environ.get("ARCHY_CACHE", Path.home() / ".cache" / "archy-tests")) / "nostr-tools"
SECRET = bytes(range(1, 33))

SCRIPT = """
import { finalizeEvent, verifyEvent, getPublicKey } from 'nostr-tools/pure'
import { readFileSync } from 'node:fs'
const { secret, ours, wanted } = JSON.parse(readFileSync(0, 'utf8'))
const key = Uint8Array.from(Buffer.from(secret, 'hex'))
const plain = e => JSON.parse(JSON.stringify(e))
console.log(JSON.stringify({
  pubkey: getPublicKey(key),
  verified: ours.map(e => verifyEvent(plain(e))),
  theirs: wanted.map(e => plain(finalizeEvent(e, key))),
}))
"""


@pytest.fixture(scope="module")
def library() -> Path:
    """A folder in which node finds nostr-tools."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("npm is not installed")
    if not (CACHE / "node_modules" / "nostr-tools" / "package.json").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        argv = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(CACHE), "nostr-tools@2"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=110, check=False)
        if done.returncode != 0:
            pytest.skip("npm could not install nostr-tools")
    return CACHE


def ask(library: Path, ours: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> dict[str, Any]:
    script = library / "ask.mjs"
    script.write_text(SCRIPT)
    given = json.dumps({"secret": SECRET.hex(), "ours": ours, "wanted": wanted})
    done = subprocess.run(["node", str(script)], input=given, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


TEXTS = ["", "plain", "grüße 日本 🎉", 'quotes " and \\ and \n\t', "\u2028 \x7f \x01", "/slashes/"]


def test_our_events_verify_in_nostr_tools_and_theirs_here(library: Path, tmp_path: Path) -> None:
    key = NostrKey(SECRET)
    alice = Publisher(tmp_path)
    ours = [sign_event(key, created_at=NOW, kind=30078, tags=[["d", text]], content=text).to_json() for text in TEXTS]
    ours += [event.to_json() for event in alice.events(*alice.release().documents)]
    forged = {**ours[1], "content": "other"}
    wanted = [{"kind": 30078, "created_at": NOW, "tags": [["d", text]], "content": text} for text in TEXTS]
    found = ask(library, [*ours, forged], wanted)
    assert found["pubkey"] == key.nostr_pubkey
    assert found["verified"] == [True] * len(ours) + [False]
    for text, theirs in zip(TEXTS, found["theirs"], strict=True):
        event = decode_event(json.dumps(theirs).encode())
        assert isinstance(event, Event)
        assert (event.content, verify(event)) == (text, None)
        spoiled = decode_event(json.dumps({**theirs, "content": text + "!"}).encode())
        assert isinstance(spoiled, Event)
        refusal = verify(spoiled)
        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.FORGED_ID
