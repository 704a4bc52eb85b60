"""The messages of NIP-01 as values: relay to client parsed, client to relay written.

Guarantees that a frame is one of the known messages with the right shape, or None; an EVENT's body stays raw, because
it has checks and bounds of its own. Refuses to know subscriptions and connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from market.discovery.events import AUTH_KIND, MAX_EVENT_SIZE, Event, Filter, SchnorrSigner, sign_event

MAX_MESSAGE_SIZE: Final = 128 * 1024
"""Bytes of one WebSocket message: an event of 64 KiB with its envelope, twice. More is cut off by the connection."""

MAX_TEXT: Final = 300
"""Characters kept of what a relay says in NOTICE, CLOSED and OK."""


@dataclass(frozen=True, slots=True)
class EventFrame:
    subscription: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class EndOfStored:
    subscription: str


@dataclass(frozen=True, slots=True)
class ClosedFrame:
    subscription: str
    text: str


@dataclass(frozen=True, slots=True)
class OkFrame:
    event_id: str
    accepted: bool
    text: str


@dataclass(frozen=True, slots=True)
class NoticeFrame:
    text: str


@dataclass(frozen=True, slots=True)
class AuthFrame:
    """NIP-42: the relay wants to know who asks."""

    challenge: str


@dataclass(frozen=True, slots=True)
class ReconcileFrame:
    """NIP-77: a message of set reconciliation, or the relay's reason why there is none (`error`)."""

    subscription: str
    message: bytes
    error: str = ""


@dataclass(frozen=True, slots=True)
class UnknownFrame:
    """A well-formed message of a kind that is not used here (COUNT, ...)."""


Frame = EventFrame | EndOfStored | ClosedFrame | OkFrame | NoticeFrame | AuthFrame | ReconcileFrame | UnknownFrame

_DECODER = msgspec.json.Decoder(list[msgspec.Raw])
_QUICK = msgspec.json.Decoder(tuple[str, str, Event])
_TEXT = msgspec.json.Decoder(str)
_BOOL = msgspec.json.Decoder(bool)
_ENCODER = msgspec.json.Encoder()


def quick_event(message: str | bytes) -> tuple[str, Event] | None:
    """Subscription and event of a well-formed EVENT message, in one typed decode; None for everything else.

    What is None here is looked at by `parse_frame` and its stricter reasons: this is the quick way for honest relays.
    """
    if len(message) > MAX_EVENT_SIZE:
        return None
    try:
        label, subscription, event = _QUICK.decode(message)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return (subscription, event) if label == "EVENT" else None


def parse_frame(message: str | bytes) -> Frame | None:
    """One message from a relay, or None when it is not one."""
    data = message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message
    if len(data) > MAX_MESSAGE_SIZE:
        return None
    try:
        parts = _DECODER.decode(data)
        return _frame(_TEXT.decode(parts[0]), parts[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError, ValueError):
        return None


def _frame(label: str, rest: list[msgspec.Raw]) -> Frame:
    match label:
        case "EVENT":
            return EventFrame(_text(rest[0]), bytes(rest[1]))
        case "EOSE":
            return EndOfStored(_text(rest[0]))
        case "CLOSED":
            return ClosedFrame(_text(rest[0]), _text(rest[1]) if len(rest) > 1 else "")
        case "OK":
            return OkFrame(_text(rest[0]), _BOOL.decode(rest[1]), _text(rest[2]) if len(rest) > 2 else "")
        case "NOTICE":
            return NoticeFrame(_text(rest[0]))
        case "AUTH":
            return AuthFrame(_text(rest[0]))
        case "NEG-MSG":
            return ReconcileFrame(_text(rest[0]), bytes.fromhex(_TEXT.decode(rest[1])))
        case "NEG-ERR":
            return ReconcileFrame(_text(rest[0]), b"", _text(rest[1]) or "refused")
        case _:
            return UnknownFrame()


def _text(raw: msgspec.Raw) -> str:
    text = _TEXT.decode(raw)[:MAX_TEXT]
    return "".join(letter if letter.isprintable() else " " for letter in text)  # it may be shown in a terminal


def request(subscription: str, filters: tuple[Filter, ...]) -> str:
    return _write("REQ", subscription, *(one.to_json() for one in filters))


def close(subscription: str) -> str:
    return _write("CLOSE", subscription)


def offer(event: dict[str, Any]) -> str:
    return _write("EVENT", event)


def reconcile(subscription: str, wanted: Filter, message: bytes) -> str:
    """NIP-77: begin."""
    return _write("NEG-OPEN", subscription, wanted.to_json(), message.hex())


def reconcile_on(subscription: str, message: bytes) -> str:
    return _write("NEG-MSG", subscription, message.hex())


def reconcile_end(subscription: str) -> str:
    return _write("NEG-CLOSE", subscription)


def authenticate(signer: SchnorrSigner, relay: str, challenge: str, now: float) -> str:
    """NIP-42: prove to this relay, for this challenge only, who asks. `now` in Unix seconds."""
    tags = [["relay", relay], ["challenge", challenge]]
    return _write("AUTH", sign_event(signer, created_at=int(now), kind=AUTH_KIND, tags=tags, content="").to_json())


def _write(*parts: Any) -> str:
    return _ENCODER.encode(parts).decode()
