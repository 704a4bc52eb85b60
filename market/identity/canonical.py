"""The one byte form of a document (RFC 8785, JCS), and its digest.

Guarantees that a received document has exactly one spelling: bytes that differ from JCS(parse(bytes)) are refused,
which shuts out duplicate keys, odd escapes, lone surrogates and spare whitespace in one check.
Refuses to know what a document means, who signed it, or where it came from.

On the values allowed here (no floats, ASCII keys, integers a double can hold) msgspec's sorted encoding *is* JCS; the
tests compare it with `rfc8785`, an independent implementation in plain Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import blake3
import msgspec
from msgspec import Meta

from apps.names import Digest
from market.errors import Refused

MAX_INTEGER: Final = 2**53 - 1
"""RFC 8785 section 3.2.2.3: beyond this an IEEE double loses units, and two readers could see two numbers."""

MAX_DEPTH: Final = 24
"""Install manifests nest about ten levels; twice that leaves room, and a stack is never at stake."""

MAX_DOCUMENT_SIZE: Final = 24 * 1024
"""Bytes of a document: an event stays below a relay's 64 KiB even after escaping has doubled all of its quotes."""

_QUICK_DEPTH: Final = 6
"""Levels that most documents stay within; deeper ones are looked at value by value."""

_ENCODER = msgspec.json.Encoder(order="sorted")


def _plain_form(depth: int) -> Any:
    """The values of documents that nest no deeper, as a type: no floats, and integers that a double can hold."""
    scalar = None | bool | str | Annotated[int, Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)]
    form: Any = scalar
    for _ in range(depth):
        form = scalar | list[form] | dict[str, form]
    return form


_QUICK: Final = msgspec.json.Decoder[Any](_plain_form(_QUICK_DEPTH))


class NotCanonical(Refused):
    """The value or its bytes are outside the one allowed form."""

    kind = "not-canonical"


def canonical_bytes(document: Mapping[str, Any]) -> bytes:
    """JCS of a document: sorted keys, no whitespace, minimal escapes, UTF-8.

    Raises NotCanonical for floats, integers beyond 2^53-1, keys outside ASCII, lone surrogates and deep nesting.
    """
    if not _is_plain(document, 0):
        _check(document, "$", 0)
    return _encode(document)


def _encode(document: Mapping[str, Any]) -> bytes:
    try:
        return _ENCODER.encode(document)
    except UnicodeEncodeError as error:
        raise NotCanonical("a text holds half of a surrogate pair") from error


def parse_canonical(data: bytes, limit: int = MAX_DOCUMENT_SIZE) -> dict[str, Any]:
    """A document from at most `limit` received bytes. Raises NotCanonical unless they are its one spelling."""
    if len(data) > limit:
        raise NotCanonical(f"{len(data)} bytes, more than the {limit} allowed")
    value = _parse_quickly(data)
    if value is None:
        value = _parse(data)
    if _encode(value) != data:
        raise NotCanonical("the bytes are not RFC 8785's form of what they say", remedy="write the document with JCS")
    return value


def _parse_quickly(data: bytes) -> dict[str, Any] | None:
    """What `_parse` finds, of most documents: what ASCII bytes hold are ASCII keys, and the type refuses the rest."""
    if not data.isascii():
        return None
    try:
        value = _QUICK.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _parse(data: bytes) -> dict[str, Any]:
    """A document of values that have a canonical form. Raises NotCanonical with the reason."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotCanonical(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise NotCanonical("not a JSON object")
    if not _is_plain(value, 0):
        _check(value, "$", 0)
    return value


def document_digest(document: Mapping[str, Any]) -> Digest:
    """BLAKE3 of JCS(document without `proof`): signing twice gives the same digest, so it is not equivocation."""
    return digest_of(unsigned_bytes(document))


def unsigned_bytes(document: Mapping[str, Any]) -> bytes:
    """JCS of the document without `proof`: what is digested and what is signed."""
    return canonical_bytes({key: value for key, value in document.items() if key != "proof"})


def written_again(parsed: Mapping[str, Any]) -> bytes:
    """JCS of what `parse_canonical` returned, or of a part of it: its values were looked at then."""
    return _encode(parsed)


def digest_of(unsigned: bytes) -> Digest:
    """The digest of a document, from its `unsigned_bytes`."""
    return Digest(blake3.blake3(unsigned).hexdigest())


def _is_plain(value: object, depth: int) -> bool:
    """Whether `_check` would find nothing, for values as they come from a decoder. A quarter of its cost; the reason
    for a refusal is found by `_check`, which also takes other mappings."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if isinstance(value, int):
        return -MAX_INTEGER <= value <= MAX_INTEGER
    if depth > MAX_DEPTH:
        return False
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str or not key.isascii():
                return False
            if type(item) is not str and not _is_plain(item, depth + 1):
                return False
        return True
    return isinstance(value, list | tuple) and all(_is_plain(item, depth + 1) for item in value)


def _check(value: object, path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotCanonical(f"nested deeper than {MAX_DEPTH} levels", where=path[:200])
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise NotCanonical("an integer above 2^53-1", where=path[:200], remedy="write it as text")
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise NotCanonical("a key outside ASCII", where=path[:200])
            _check(item, f"{path}.{key}", depth + 1)
        return
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth + 1)
        return
    raise NotCanonical(f"a {type(value).__name__} has no place in a document", where=path[:200])
