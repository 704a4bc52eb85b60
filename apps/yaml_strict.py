"""YAML as a tree of mappings, sequences and strings, and nothing else.

Guarantees: every scalar is the string that was written (`2.10` stays `2.10`, `22:22` and `no` stay text); duplicate
keys, anchors, aliases, tags, merge keys and further documents are refused; size, depth and node count are bounded
before anything is built. It refuses to know what any key means. Pure.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import yaml

from apps.problems import Refused

MAX_BYTES: Final = 256 * 1024
"""Above any manifest written by people; relays bound an event to less than this anyway."""
MAX_DEPTH: Final = 16
"""The schema nests eight deep; the rest is room, and a bound on recursion."""
MAX_NODES: Final = 20_000
"""A manifest of MAX_BYTES made of two-byte nodes would have far more; no real one comes near."""

Tree: TypeAlias = "dict[str, Tree] | list[Tree] | str"


def load(text: str | bytes, *, where: str) -> Tree:
    """Parse one YAML 1.1 document. Raises Refused, naming line and column, for anything beyond plain data."""
    if len(text) > MAX_BYTES:
        raise Refused(f"the file has more than {MAX_BYTES} bytes", where=where, remedy="a manifest is a short text")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(f"not UTF-8 at byte {error.start}", where=where, remedy="save the file as UTF-8") from error
    try:
        return _Builder(text, where).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or "not YAML"
        raise Refused(str(what), where=_at(where, mark), remedy="correct the YAML syntax there") from error


def _at(where: str, mark: Any) -> str:
    return where if mark is None else f"{where}:{mark.line + 1}:{mark.column + 1}"


class _Builder:
    """Walks the parser's events, so that nothing is constructed before it was looked at."""

    def __init__(self, text: str, where: str) -> None:
        self._events = yaml.parse(text, Loader=yaml.SafeLoader)
        self._where = where
        self._nodes = 0

    def _next(self) -> yaml.Event:
        return next(self._events)

    def _refuse(self, event: yaml.Event, what: str, remedy: str) -> Refused:
        return Refused(what, where=_at(self._where, event.start_mark), remedy=remedy)

    def document(self) -> Tree:
        self._next()  # stream start
        first = self._next()
        if isinstance(first, yaml.StreamEndEvent):
            return ""
        tree = self._node(self._next(), 0)
        self._next()  # document end
        after = self._next()
        if not isinstance(after, yaml.StreamEndEvent):
            raise self._refuse(after, "a second document begins here", "keep one document in the file")
        return tree

    def _node(self, event: yaml.Event, depth: int) -> Tree:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise self._refuse(event, "nested too deep or too long", "a manifest is a short text")
        if isinstance(event, yaml.AliasEvent):
            raise self._refuse(event, f"alias *{event.anchor}", "write the value out")
        if (anchor := getattr(event, "anchor", None)) is not None:
            raise self._refuse(event, f"anchor &{anchor}", "remove it, and write values out")
        if (tag := getattr(event, "tag", None)) is not None:
            raise self._refuse(event, f"tag {tag}", "remove it; the schema types every value")
        match event:
            case yaml.ScalarEvent():
                return str(event.value)
            case yaml.SequenceStartEvent():
                return self._sequence(depth)
            case yaml.MappingStartEvent():
                return self._mapping(depth)
        raise self._refuse(event, "unexpected structure", "write mappings, lists and text only")

    def _sequence(self, depth: int) -> Tree:
        items: list[Tree] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> Tree:
        items: dict[str, Tree] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            if not isinstance(key, str):
                raise self._refuse(event, "a key that is not text", "use plain words as keys")
            if key == "<<":
                raise self._refuse(event, "merge key <<", "write the values out")
            if key in items:
                raise self._refuse(event, f"key {key!r} appears twice", "keep one of them")
            items[key] = self._node(self._next(), depth + 1)
        return items
