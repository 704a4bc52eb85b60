"""Packages whose parts are loaded when they are first asked for, so that a short-lived process loads little.

Knows no package: each says itself which of its modules holds which of its names (PEP 562).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def loader(package: str, namespace: dict[str, Any], parts: Mapping[str, str]) -> Callable[[str], object]:
    """A package's `__getattr__`. `parts`: module of the package -> names, with spaces between them."""
    part_of = {name: part for part, names in parts.items() for name in names.split()}

    def load(name: str) -> object:
        if name not in part_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(f"{package}.{part_of[name]}"), name)
        namespace[name] = found
        return found

    return load
