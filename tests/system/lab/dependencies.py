"""Which of the locked packages a node gets. Pure: text of requirements.lock in, requirement blocks out.

pip's own `--python-version` chooses wheels for another Python but evaluates markers with the running one, so the
markers are evaluated here.
"""

from __future__ import annotations

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["NODE_PYTHON", "node_requirements", "platform_tags"]

NODE_PYTHON = "3.13"
"""The Python of Debian 13."""

_GLIBC_MINOR = 41
"""Debian 13 has glibc 2.41; wheels built for it or anything older run there (PEP 600)."""

_OLDEST_GLIBC_MINOR = 5
"""manylinux1, the oldest there is (PEP 600)."""

_NOT_IN_NODES = frozenset(
    {
        "ast-serialize",
        "contourpy",
        "cycler",
        "fonttools",
        "grimp",
        "import-linter",
        "kiwisolver",
        "librt",
        "matplotlib",
        "mypy",
        "mypy-extensions",
        "pillow",
        "pyparsing",
        "ruff",
        "types-pyyaml",
    }
)
"""Checkers and yardsticks that no test inside a node imports; together they are most of the bytes."""


def node_requirements(lock: str) -> str:
    """The blocks of a pip-compile lock file that apply to a node's Python, hashes included."""
    environment = {key: str(value) for key, value in default_environment().items()} | {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{NODE_PYTHON}.0",
        "python_version": NODE_PYTHON,
        "sys_platform": "linux",
    }
    kept = []
    for block in _blocks(lock):
        requirement = Requirement(block.split("--hash", 1)[0].replace("\\\n", " ").strip())
        if canonicalize_name(requirement.name) in _NOT_IN_NODES:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        kept.append(_without_marker(block))
    return "\n".join(kept) + "\n"


def platform_tags(machine: str) -> tuple[str, ...]:
    """The wheel platforms that run on Debian 13 on this machine type (`uname -m`), newest first."""
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC_MINOR, _OLDEST_GLIBC_MINOR - 1, -1)]
    return (*tags, f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}", f"linux_{machine}")


def _blocks(lock: str) -> list[str]:
    lines = [line for line in lock.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    blocks: list[str] = []
    continued = False
    for line in lines:
        if continued:
            blocks[-1] += "\n" + line
        else:
            blocks.append(line)
        continued = line.endswith("\\")
    return blocks


def _without_marker(block: str) -> str:
    # The marker held for the node's Python; pip would evaluate it again for the running one.
    first, newline, rest = block.partition("\n")
    head, semicolon, _ = first.partition(";")
    return block if not semicolon else f"{head.rstrip()} \\{newline}{rest}"
