"""Containerfiles that a node builds: a small language, read strictly, and written again as it was understood.

Guarantees: what parses begins from nothing, from an earlier stage or from a base pinned by digest; reads only files of
its context and of earlier stages; asks for no network, no secret, no host file; and `Containerfile.text` says exactly
that in a form that leaves Podman's own parser nothing to decide. Whatever is not understood is refused (R-MF12): the
builder fetches for ADD, FROM and --from outside the container's network namespace, where `--network=none` stops
nothing. All faults are told at once, each with its line. It knows no file system and no Podman. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from apps.containerfile_text import CONTROL, Fault, instructions
from apps.problems import Refused

NAME: Final = "Containerfile"
"""What the file is called in its context."""
IGNORING: Final = (".containerignore", ".dockerignore")
"""Files of a context that would take other files out of it."""
MAX_INSTRUCTIONS: Final = 256
"""Each takes a process and a moment of the builder."""
MAX_STAGES: Final = 16
MAX_PROBLEMS: Final = 50
"""Faults that are told; nobody mends more at a time."""
RESERVED_LABELS: Final = ("archy.", "io.containers.", "io.podman.")
"""Labels by which this node and Podman's own services know what to do with a container: an image does not set them."""

_STAGE: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_BASE: Final = re.compile(r"([a-z0-9][a-z0-9._/:-]{0,254})@(sha256:[0-9a-f]{64})")
_PATH: Final = re.compile(r"[A-Za-z0-9._/+@,:=~ -]+")
_OWNER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?")
_MODE: Final = re.compile(r"0?[0-7]{3}")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}(/(tcp|udp))?")
_SIGNAL: Final = re.compile(r"SIG[A-Z0-9]{2,9}|[1-9][0-9]?")
_PAIR: Final = re.compile(r"""([A-Za-z_][A-Za-z0-9_.-]*)=(?:"([^"\\`]*)"|'([^'"\\`$]*)'|([^\s"'\\`]*))(?=[ \t]|$)""")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ContainerfileRefused(Refused):
    """Every fault of one Containerfile."""

    kind = "containerfile"

    def __init__(self, faults: Sequence[Fault], *, where: str) -> None:
        told = tuple(faults[:MAX_PROBLEMS])
        super().__init__(
            "\n".join(("the Containerfile can not be built here:", *(f"  {fault}" for fault in told))), where=where
        )
        self.faults = told
        self.errors = tuple((f"line {one.line}" if one.line else NAME, one.what, one.remedy) for one in told)
        """(where in it, what, remedy), as every problem with several faults has them."""


@dataclass(frozen=True, slots=True)
class From:
    """What a stage begins with: `base` is a digest, `stage` an earlier stage; neither of them is scratch."""

    name: str
    base: str = ""
    stage: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    begin: From
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Containerfile:
    """What was understood."""

    stages: tuple[Stage, ...]

    @property
    def bases(self) -> tuple[str, ...]:
        """Digests of the images that stages begin with, each once."""
        return tuple(dict.fromkeys(stage.begin.base for stage in self.stages if stage.begin.base))

    @property
    def from_scratch(self) -> bool:
        return any(not stage.begin.base and not stage.begin.stage for stage in self.stages)

    def text(self, images: Mapping[str, str], scratch: str = "scratch") -> str:
        """For the builder. `images`: the local name of each base by its digest; `scratch`: that of an empty image."""
        out = []
        for stage in self.stages:
            begin = stage.begin
            start = images[begin.base] if begin.base else begin.stage or scratch
            out += [f"FROM {start} AS {begin.name}", *stage.lines]
        return "\n".join(out) + "\n"


def parse(
    raw: bytes, *, context: Collection[str], bases: Collection[str], mounts: Collection[str] = (), where: str
) -> Containerfile:
    """Read a Containerfile. `context`: its files, relative to the context; `bases`: digests that the manifest lists;
    `mounts`: paths at which a volume of the app is mounted.

    Raises ContainerfileRefused with every fault.
    """
    reader = _Reader(frozenset(context), frozenset(bases), frozenset(path.rstrip("/") or "/" for path in mounts))
    stages = reader.read(raw)
    if reader.faults:
        raise ContainerfileRefused(sorted(reader.faults, key=lambda fault: fault.line), where=where)
    return Containerfile(stages)


class _Wrong(Exception):
    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.fault = what, remedy


class _Reader:
    def __init__(self, context: frozenset[str], bases: frozenset[str], mounts: frozenset[str]) -> None:
        self._context = context
        self._mounts = mounts
        self._folders = {"", *(path[:at] for path in context for at, char in enumerate(path) if char == "/")}
        self._bases = bases
        self.faults: list[Fault] = []
        self._stages: list[tuple[From, list[str]]] = []

    def read(self, raw: bytes) -> tuple[Stage, ...]:
        for name in IGNORING:
            if name in self._context:
                self._fault(0, f"the context has a {name}", "delete it: every file of the context is signed and used")
        found = instructions(raw, self.faults)
        for count, (line, instruction) in enumerate(found):
            if count >= MAX_INSTRUCTIONS:
                self._fault(line, f"more than {MAX_INSTRUCTIONS} instructions", "move commands into a script")
                break
            try:
                self._take(instruction)
            except _Wrong as wrong:
                self._fault(line, *wrong.fault)
        if not self._stages and not self.faults:
            self._fault(0, "no FROM", "begin with FROM scratch, or with a base pinned by digest")
        return tuple(Stage(begin, tuple(lines)) for begin, lines in self._stages)

    def _fault(self, line: int, what: str, remedy: str) -> None:
        self.faults.append(Fault(line, what, remedy))

    def _take(self, instruction: str) -> None:
        word, _, rest = instruction.partition(" ") if " " in instruction else instruction.partition("\t")
        if "\t" in word:
            word, _, more = word.partition("\t")
            rest = f"{more} {rest}"
        keyword, rest = word.upper(), rest.strip()
        if (reason := _REFUSED.get(keyword)) is not None:
            raise _Wrong(f"{keyword} is not allowed", reason)
        take = _TAKEN.get(keyword)
        if take is None:
            raise _Wrong(f"not an instruction that is understood: {word[:40]!a}", f"known are {', '.join(_TAKEN)}")
        if not rest:
            raise _Wrong(f"{keyword} without anything", "write what it is to do, or remove it")
        if keyword == "FROM":
            self._from(rest)
            return
        if not self._stages:
            raise _Wrong(f"{keyword} before the first FROM", "begin with FROM")
        self._stages[-1][1].append(take(self, rest))

    def _from(self, rest: str) -> None:
        words = rest.split()
        alias = words[2] if len(words) == 3 and words[1].upper() == "AS" else ""
        number = len(self._stages)
        # Whatever is wrong with it, a stage begins here: the lines below are judged too
        self._stages.append((From(alias if _STAGE.fullmatch(alias) else f"stage-{number}"), []))
        if number >= MAX_STAGES:
            raise _Wrong(f"more than {MAX_STAGES} stages", "use fewer")
        if words[0].startswith("--"):
            raise _Wrong(f"FROM with {words[0][:40]!a}", "remove it: a node builds for itself")
        if len(words) != 1 and not alias:
            raise _Wrong("not a FROM that is understood", "write FROM name@sha256:... AS stage")
        if alias and not _STAGE.fullmatch(alias):
            raise _Wrong(f"not a name for a stage: {alias[:40]!a}", "write lower-case letters, digits, hyphens")
        if alias == "scratch" or alias.startswith("stage-") or alias in self._names()[:-1]:
            raise _Wrong(f"a stage can not be called {alias[:40]}", "choose a name of its own")
        self._stages[-1] = (self._begin(words[0], self._stages[-1][0].name), [])

    def _begin(self, start: str, name: str) -> From:
        if start == "scratch":
            return From(name)
        if start in self._names()[:-1]:
            return From(name, stage=start)
        if "$" in start:
            raise _Wrong("FROM with a variable", "write the base out: name@sha256:...")
        if (found := _BASE.fullmatch(start)) is None:
            raise _Wrong(
                f"not a base pinned by digest: {start[:80]!a}", "write name@sha256:..., an earlier stage, or scratch"
            )
        if found[2] not in self._bases:
            raise _Wrong(f"{found[2][:19]}... is not among the manifest's `bases`", "list its digest there")
        return From(name, base=found[2])

    def _names(self) -> list[str]:
        return [begin.name for begin, _ in self._stages]

    def _copy(self, rest: str) -> str:
        _no_heredoc("COPY", rest)
        flags, rest = self._flags(rest)
        paths = _json_words(rest) if rest.startswith("[") else rest.split()
        if paths is None or len(paths) < 2:
            raise _Wrong("COPY without source and destination", "write COPY source /destination")
        *sources, target = paths
        for path in paths:
            if "$" in path or "*" in path or "?" in path or "[" in path:
                raise _Wrong(f"COPY with a pattern or a variable: {path[:80]!a}", "name the file or the folder")
            if not _PATH.fullmatch(path) or path.startswith(("~", "-")) or ".." in path.split("/"):
                raise _Wrong(f"not a path that is understood: {path[:80]!a}", "write a plain path without ..")
        if len(sources) > 1 and not target.endswith("/"):
            raise _Wrong("COPY of several sources to one file", "end the destination with a slash")
        if not any(flag.startswith("--from=") for flag in flags):
            for source in sources:
                self._in_context(source)
        return " ".join(("COPY", *flags, json.dumps([*sources, target])))

    def _flags(self, rest: str) -> tuple[list[str], str]:
        flags: list[str] = []
        while rest.startswith("--"):
            flag, *more = rest.split(maxsplit=1)
            name, _, value = flag.partition("=")
            if name == "--from":
                self._earlier(value)
            elif name not in ("--chown", "--chmod"):
                raise _Wrong(f"COPY with {name[:40]!a}", "only --from, --chown and --chmod are understood")
            elif not (_OWNER if name == "--chown" else _MODE).fullmatch(value):
                raise _Wrong(f"not a value for {name}: {value[:40]!a}", "write --chown=1000:1000, --chmod=755")
            if any(known.startswith(f"{name}=") for known in flags):
                raise _Wrong(f"{name} twice", "keep one of them")
            flags.append(flag)
            rest = more[0] if more else ""
        return flags, rest

    def _earlier(self, value: str) -> None:
        if value not in self._names()[:-1]:
            # Anything else the builder takes for an image, and fetches it
            raise _Wrong(f"COPY --from={value[:80]!a} names no earlier stage", "name it: FROM ... AS name")

    def _in_context(self, source: str) -> None:
        if "://" in source or source.startswith("git@"):
            raise _Wrong(f"COPY of an address: {source[:80]!a}", "put the file into the context")
        path = "/".join(part for part in source.split("/") if part not in ("", "."))
        if path not in self._context and path not in self._folders:
            raise _Wrong(f"{source[:80]!a} is not in the context", "add the file to the build's folder")

    def _run(self, rest: str) -> str:
        if rest.startswith("--"):
            flag = rest.split()[0].partition("=")[0]
            raise _Wrong(f"RUN with {flag[:40]!a}", "remove it: a build has no network, secrets, mounts or privileges")
        _no_heredoc("RUN", rest)
        return f"RUN {_command('RUN', rest)}"

    def _volume(self, rest: str) -> str:
        paths = _json_words(rest) if rest.startswith("[") else rest.split()
        if not paths:
            raise _Wrong("not a VOLUME that is understood", "write VOLUME /path")
        for path in paths:
            _absolute("VOLUME", path)
            if (path.rstrip("/") or "/") not in self._mounts:  # R-MF10: data there would die at every stop
                raise _Wrong(f"VOLUME {path[:80]}, where no volume is mounted", "mount one there, or remove the line")
        return f"VOLUME {json.dumps(paths)}"


def _no_heredoc(keyword: str, rest: str) -> None:
    if "<<" in rest:
        raise _Wrong(f"{keyword} with <<", "put the text into a file of the context")


def _json_words(rest: str) -> list[str] | None:
    try:
        words = json.loads(rest)
    except (ValueError, RecursionError):
        return None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        return None
    return None if any(CONTROL.search(word) or "\n" in word for word in words) else words


def _command(keyword: str, rest: str) -> str:
    if not rest.startswith("["):
        return rest
    words = _json_words(rest)
    if words is None:
        # The builder would take it for a shell's text
        raise _Wrong(f"{keyword} with a list that is no JSON", 'write ["program", "argument"]')
    return json.dumps(words)


def _absolute(keyword: str, path: str) -> None:
    if not path.startswith("/") or not _PATH.fullmatch(path) or " " in path or ".." in path.split("/"):
        raise _Wrong(f"not a path for {keyword}: {path[:80]!a}", "write an absolute path without .. or variables")


def _pairs(keyword: str, rest: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(rest):
        match = _PAIR.match(rest, at)
        if match is None:
            raise _Wrong(f"not a {keyword} that is understood: {rest[at : at + 40]!a}", f'write {keyword} KEY="value"')
        found.append((match[1], next(value for value in match.groups()[1:] if value is not None)))
        at = match.end()
        at += len(rest[at:]) - len(rest[at:].lstrip())
    return found


def _env(_: _Reader, rest: str) -> str:
    pairs = _pairs("ENV", rest)
    for key, _value in pairs:
        if not _VARIABLE.fullmatch(key):
            raise _Wrong(f"not a name for a variable: {key[:40]!a}", "write letters, digits and underscores")
    return " ".join(("ENV", *(f'{key}="{value}"' for key, value in pairs)))


def _label(_: _Reader, rest: str) -> str:
    pairs = _pairs("LABEL", rest)
    for key, value in pairs:
        if key.startswith(RESERVED_LABELS):
            raise _Wrong(f"LABEL {key[:60]} is not an image's to set", "remove it")
        if "$" in value:
            raise _Wrong("LABEL with a variable", "write the value out")
    return " ".join(("LABEL", *(f'{key}="{value}"' for key, value in pairs)))


def _workdir(_: _Reader, rest: str) -> str:
    _absolute("WORKDIR", rest)
    return f"WORKDIR {rest}"


def _simple(keyword: str, pattern: re.Pattern[str], example: str, *, many: bool = False) -> Callable[..., str]:
    def take(_: _Reader, rest: str) -> str:
        words = rest.split()
        if (len(words) > 1 and not many) or not all(pattern.fullmatch(word) for word in words):
            raise _Wrong(f"not a {keyword} that is understood: {rest[:40]!a}", f"write {keyword} {example}")
        return " ".join((keyword, *words))

    return take


def _started(keyword: str) -> Callable[..., str]:
    return lambda _, rest: f"{keyword} {_command(keyword, rest)}"


_TAKEN: Final[Mapping[str, Callable[[_Reader, str], str]]] = {
    "FROM": lambda _, rest: rest,
    "COPY": _Reader._copy,
    "RUN": _Reader._run,
    "ENV": _env,
    "LABEL": _label,
    "WORKDIR": _workdir,
    "USER": _simple("USER", _OWNER, "1000:1000"),
    "EXPOSE": _simple("EXPOSE", _PORT, "8080/tcp", many=True),
    "VOLUME": _Reader._volume,
    "STOPSIGNAL": _simple("STOPSIGNAL", _SIGNAL, "SIGTERM"),
    "ENTRYPOINT": _started("ENTRYPOINT"),
    "CMD": _started("CMD"),
}

_REFUSED: Final[Mapping[str, str]] = {
    "ADD": "write COPY: ADD fetches from addresses and unpacks archives",
    "ARG": "write ENV: a node gives a build no arguments",
    "HEALTHCHECK": "write `health` in the manifest",
    "MAINTAINER": "write LABEL, or nothing: the publisher is who signed",
    "ONBUILD": "write the instruction where it is needed",
    "SHELL": 'write RUN ["program", "argument"]',
}
