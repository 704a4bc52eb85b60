"""All that is wrong with a manifest, at once: key path, what is wrong there, what would be right. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from apps.problems import Refused

MAX_ERRORS: Final = 50
"""More than anyone mends in one go; bounds what a hostile manifest can make a node print."""


@dataclass(frozen=True, slots=True, order=True)
class ManifestError:
    """One fault: `path` as `containers.web.ports[0].host`, a sentence, and what would be right."""

    path: str
    message: str
    remedy: str

    def __iter__(self) -> Any:
        return iter((self.path, self.message, self.remedy))

    def __str__(self) -> str:
        return f"{self.path}: {self.message} ({self.remedy})" if self.path else f"{self.message} ({self.remedy})"


class ManifestProblem(Refused):
    """A manifest that is not right. `errors` holds every fault that was found, by key path."""

    kind = "manifest"

    def __init__(self, errors: Iterable[ManifestError], *, where: str) -> None:
        self.errors: tuple[ManifestError, ...] = tuple(sorted(set(errors)))[:MAX_ERRORS]
        count = len(self.errors)
        head = "1 error" if count == 1 else f"{count} errors"
        lines = "".join(f"\n  {error}" for error in self.errors)
        super().__init__(f"{head} in the manifest:{lines}", where=where)


def dotted(location: Sequence[int | str]) -> str:
    """("ports", 0, "host") -> `ports[0].host`."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    return path


_FORBIDDEN: Final[Mapping[str, str]] = {
    "privileged": "an app never runs privileged; name the capabilities and devices it needs under security",
    "cap_add": "write security: {capabilities: [...]}",
    "network_mode": "an app has a network of its own; permissions: {internet: outbound} lets it out",
    "host": "host paths are never mounted; declare a volume and mount it",
    "source": "host paths are never mounted; declare a volume and mount it",
    "bind": "host paths are never mounted; declare a volume and mount it",
    "pid": "an app never shares the host's process namespace",
    "ipc": "an app never shares the host's IPC namespace",
    "userns": "the node chooses the user namespace",
    "security_opt": "no-new-privileges is always on, and nothing can turn confinement off",
}

_SENTENCES: Final[Mapping[str, tuple[str, str]]] = {
    "missing": ("the key is missing", "add it"),
    "model_type": ("not a mapping", "write keys and values"),
    "dict_type": ("not a mapping", "write keys and values"),
    "string_type": ("not text", "write text"),
}


def from_pydantic(error: ValidationError, model: type[BaseModel]) -> list[ManifestError]:
    """Every fault of a validation, in this project's words."""
    found = []
    for fault in error.errors(include_url=False):
        location = tuple(step for step in fault["loc"] if step != "[key]")
        found.append(ManifestError(dotted(_visible(location, model)), *_sentence(fault, location, model)))
    return found


def _sentence(fault: Mapping[str, Any], location: Sequence[int | str], model: type[BaseModel]) -> tuple[str, str]:
    kind = fault["type"]
    if kind == "manifest":
        return str(fault["ctx"]["what"]), str(fault["ctx"]["remedy"])
    if kind == "extra_forbidden":
        return "unknown key", _known(location, model)
    if kind == "literal_error":
        return f"not one of the choices: {ascii(fault['input'])[:80]}", f"write {fault['ctx']['expected']}"
    return _SENTENCES.get(kind, (str(fault["msg"])[:200], "correct the value"))


def _known(location: Sequence[int | str], model: type[BaseModel]) -> str:
    key = str(location[-1])
    if key in _FORBIDDEN:
        return _FORBIDDEN[key]
    parent = _model_at(location[:-1], model)
    names = sorted(field.alias or name for name, field in parent.model_fields.items()) if parent else []
    close = difflib.get_close_matches(key, names, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"the keys here are {', '.join(names)}" if names else "remove it"


def _model_at(location: Sequence[int | str], model: type[BaseModel]) -> type[BaseModel] | None:
    here: type[BaseModel] | None = model
    for step in location:
        if here is None:
            return None
        field = next((f for name, f in here.model_fields.items() if step in (name, f.alias)), None)
        if field is not None:
            here = _model_in(field.annotation)
    return here


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if (found := _model_in(inner)) is not None:
            return found
    return None


def _visible(location: Sequence[int | str], model: type[BaseModel]) -> tuple[int | str, ...]:
    """Without the names that pydantic adds for the members of a union."""
    shown: list[int | str] = []
    for step in location:
        if isinstance(step, str) and (step in ("DumpBackup",) or step.startswith(("literal[", "function-"))):
            continue
        shown.append(step)
    return tuple(shown)
