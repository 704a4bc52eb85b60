"""The scalar types of a manifest: what a text must look like, and the sentence that says what would be right.

A value arrives either from YAML, where every scalar is text, or from signed JSON, where numbers and truth values
already have their type; the validation context says which, and neither form accepts the other's. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_INT: Final = 2**53 - 1
"""The largest integer that JCS (RFC 8785) carries without loss."""


class Form(Enum):
    """Where the values come from: YAML written by people, or the JSON that was signed."""

    YAML = "yaml"
    JSON = "json"


def wrong(what: str, remedy: str) -> PydanticCustomError:
    """The error of one value: what is wrong, and what would be right."""
    return PydanticCustomError("manifest", "{what}", {"what": what, "remedy": remedy})


def shown(value: object) -> str:
    """The value as an error message quotes it, cut so that a hostile one can not flood a terminal."""
    return ascii(value)[:80]


def _form(info: ValidationInfo) -> Form:
    return info.context if isinstance(info.context, Form) else Form.JSON


_DECIMAL = re.compile(r"0|[1-9][0-9]{0,15}")


def _as_int(value: object, form: Form, remedy: str) -> int:
    if form is Form.YAML and isinstance(value, str) and _DECIMAL.fullmatch(value):
        return int(value)
    if form is Form.JSON and isinstance(value, int) and not isinstance(value, bool):
        return value
    raise wrong(f"not a whole number: {shown(value)}", remedy)


def whole(low: int, high: int) -> BeforeValidator:
    """A whole number within bounds."""
    remedy = f"write a whole number from {low} to {high}"

    def check(value: object, info: ValidationInfo) -> int:
        number = _as_int(value, _form(info), remedy)
        if not low <= number <= high:
            raise wrong(f"{number} is out of range", remedy)
        return number

    return BeforeValidator(check)


def _truth(value: object, info: ValidationInfo) -> bool:
    if _form(info) is Form.JSON:
        if isinstance(value, bool):
            return value
    elif isinstance(value, str) and value in ("true", "false"):
        return value == "true"
    raise wrong(f"not a truth value: {shown(value)}", "write true or false")


_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB|TiB)")


def parse_size(text: str) -> int | None:
    """`2GiB` -> bytes; None when it is no size in IEC units."""
    match = _SIZE.fullmatch(text)
    return int(match[1]) * _UNITS[match[2]] if match else None


def _size(value: object, info: ValidationInfo) -> int:
    remedy = "write a whole number and an IEC unit: 512MiB, 2GiB (B, KiB, MiB, GiB, TiB)"
    if _form(info) is Form.JSON:
        size: int | None = _as_int(value, Form.JSON, "in JSON a size is a whole number of bytes")
    else:
        size = parse_size(value) if isinstance(value, str) else None
    if size is None or not 0 < size <= MAX_INT:
        raise wrong(f"not a size: {shown(value)}", remedy)
    return size


def text(pattern: str, remedy: str, *, what: str = "not valid here") -> BeforeValidator:
    """Text that matches the pattern as a whole."""
    compiled = re.compile(pattern)

    def check(value: object) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise wrong(f"{what}: {shown(value)}", remedy)
        return value

    return BeforeValidator(check)


def line(longest: int, *, empty: bool = False) -> BeforeValidator:
    """One line of text for people or for a process: no control characters, at most `longest` characters."""
    remedy = f"write one line of at most {longest} characters without control characters"

    def check(value: object) -> str:
        if not isinstance(value, str) or len(value) > longest or not (value or empty):
            raise wrong(f"not a line of text: {shown(value)}", remedy)
        if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029" or 0xD800 <= ord(c) < 0xE000 for c in value):
            raise wrong(f"a control character in {shown(value)}", remedy)
        return value

    return BeforeValidator(check)


def _relative(value: object) -> str:
    remedy = "write a relative path inside the app's folder, such as templates/app.conf, without . or .."
    parts = value.split("/") if isinstance(value, str) else []
    if not parts or any(not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,127}", part) for part in parts):
        raise wrong(f"not a path inside the app's folder: {shown(value)}", remedy)
    if len(parts) > 8:
        raise wrong(f"nested too deep: {shown(value)}", "use at most eight folders")
    return "/".join(parts)


def _inside(value: object) -> str:
    remedy = "write an absolute path inside the container, such as /var/lib/app, without . or .. or :"
    if not isinstance(value, str) or not re.fullmatch(r"(/[A-Za-z0-9_.@+-]{1,128}){1,16}", value):
        raise wrong(f"not a path inside the container: {shown(value)}", remedy)
    if any(part in (".", "..") for part in value.split("/")):
        raise wrong(f"the path leaves its folder: {shown(value)}", remedy)
    return value


_RUNTIME_SOCKETS: Final = ("podman.sock", "docker.sock", "containerd.sock", "crio.sock")


def _no_host_socket(value: str) -> str:
    if value.endswith(_RUNTIME_SOCKETS) or value in ("/proc", "/sys", "/dev", "/"):
        raise wrong(f"{value} would hand the host to the app", "an app never gets a host socket or a kernel folder")
    return value


def parse_version(value: str) -> tuple[tuple[int, ...], int] | None:
    """`2.1.0-3` -> ((2, 1, 0), 3): dotted numbers, then the packaging revision; None when it is no version."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9}){0,5})(?:-([0-9]{1,6}))?", value)
    if match is None:
        return None
    numbers = [int(part) for part in match[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()  # 2.0 and 2.0.0 are one version
    return tuple(numbers), int(match[2] or 0)


_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    "==": lambda a, b: a == b,
}


def satisfies(version: str, constraint: str) -> bool:
    """Does a version meet every clause of `>=1.2,<2`? An unreadable version meets none."""
    have = parse_version(version)
    for clause in constraint.split(","):
        match = re.fullmatch(r"(>=|<=|==|>|<)(.+)", clause.strip())
        want = parse_version(match[2]) if match else None
        if have is None or match is None or want is None or not _COMPARE[match[1]](have, want):
            return False
    return True


def _constraint(value: object) -> str:
    remedy = 'write comparisons joined by commas, such as ">=5.0" or ">=1.2,<2"'
    clauses = value.split(",") if isinstance(value, str) and len(value) <= 80 else [""]
    for clause in clauses:
        match = re.fullmatch(r"(>=|<=|==|>|<)(\S+)", clause.strip())
        if match is None or parse_version(match[2]) is None:
            raise wrong(f"not a version range: {shown(value)}", remedy)
    return ",".join(clause.strip() for clause in clauses)


def _port_reference(value: object, info: ValidationInfo) -> int | str:
    remedy = "write the name of one of the container's ports, or a number from 1 to 65535"
    if isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9-]{0,29}", value):
        return value
    number = _as_int(value, _form(info), remedy)
    if not 1 <= number <= 65535:
        raise wrong(f"{number} is out of range", remedy)
    return number


def _host_port(value: object, info: ValidationInfo) -> int | str:
    if value == "auto":
        return "auto"
    remedy = "write a number from 1 to 65535, or auto"
    number = _as_int(value, _form(info), remedy)
    if not 1 <= number <= 65535:
        raise wrong(f"{number} is out of range", remedy)
    return number


def _cpus(value: object) -> str:
    remedy = 'write a decimal number of processors in quotes, from "0.01" to "512"'
    if not isinstance(value, str) or not re.fullmatch(r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,2})?", value):
        raise wrong(f"not a number of processors: {shown(value)}", remedy)
    if not 0.01 <= float(value) <= 512:
        raise wrong(f"{value} is out of range", remedy)
    return value


_REFERENCE = (
    r"(?=.{1,300}$)[a-z0-9]+([.-][a-z0-9]+)*(:[0-9]{1,5})?"
    r"(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?"
)

AppId = Annotated[
    str,
    text(
        r"[a-z0-9][a-z0-9-]{1,38}",
        "write 2 to 39 lower-case letters, digits and hyphens, starting with a letter or digit",
        what="not an app id",
    ),
]
Label = Annotated[
    str,
    text(
        r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?",
        "write a DNS label of at most 30 lower-case letters, digits and hyphens, starting with a letter",
        what="not a name",
    ),
]
AliasName = Annotated[
    str,
    text(
        r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        "write a DNS label: at most 63 lower-case letters, digits and hyphens",
        what="not a DNS label",
    ),
]
Category = Annotated[
    str, text(r"[a-z][a-z0-9-]{1,29}", "write a lower-case word, such as photos", what="not a category")
]
SettingName = Annotated[
    str,
    text(r"[a-z][a-z0-9_-]{0,39}", "write lower-case letters, digits, _ and -", what="not a setting's name"),
]
AppVersion = Annotated[
    str,
    text(
        r"[0-9A-Za-z][0-9A-Za-z.+_~]{0,40}(-[0-9]{1,6})?",
        'write the upstream version and, if any, a packaging revision, such as "2.1.0-3"',
        what="not a version",
    ),
]
ImageReference = Annotated[
    str,
    text(
        _REFERENCE,
        "write the full reference, registry included, such as ghcr.io/immich-app/immich-server:v2.1.0",
        what="not an image reference",
    ),
]
Sha256 = Annotated[
    str, text(r"sha256:[0-9a-f]{64}", "write sha256: and 64 lower-case hex digits", what="not a SHA-256 digest")
]
Blake3 = Annotated[
    str, text(r"[0-9a-f]{64}", "write the 64 lower-case hex digits of the BLAKE3 digest", what="not a BLAKE3 digest")
]
Architecture = Annotated[
    str, text(r"amd64|arm64|arm|riscv64|386|ppc64le|s390x", "write amd64, arm64, ...", what="not an architecture")
]
User = Annotated[
    str,
    text(
        r"([0-9]{1,9}|[a-z_][a-z0-9_-]{0,31})(:([0-9]{1,9}|[a-z_][a-z0-9_-]{0,31}))?",
        'write a user id or name, and a group after a colon if needed: "999", "999:999"',
        what="not a user",
    ),
]
Owner = Annotated[
    str, text(r"[0-9]{1,9}:[0-9]{1,9}", 'write two ids inside the container, "999:999"', what="not an owner")
]
EnvName = Annotated[
    str,
    text(
        r"[A-Za-z_][A-Za-z0-9_]{0,127}",
        "write letters, digits and underscores, not starting with a digit",
        what="not an environment variable's name",
    ),
]
Capability = Annotated[
    str,
    text(
        r"(AUDIT_WRITE|CHOWN|DAC_OVERRIDE|FOWNER|FSETID|KILL|NET_BIND_SERVICE|SETFCAP|SETGID|SETPCAP|SETUID"
        r"|SYS_CHROOT)",
        "an app may ask for CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, NET_BIND_SERVICE, SETFCAP, SETGID, SETPCAP, "
        "SETUID, SYS_CHROOT, AUDIT_WRITE; what reaches the host is never granted",
        what="not a capability that apps are given",
    ),
]
Device = Annotated[
    str,
    text(
        r"/dev/(dri(/[A-Za-z0-9]+)?|kfd|nvidia[a-z0-9-]*|video[0-9]+|ttyUSB[0-9]+|ttyACM[0-9]+|hidraw[0-9]+)",
        "write a device an app may ask for: /dev/dri, /dev/kfd, /dev/nvidia0, /dev/video0, /dev/ttyUSB0",
        what="not a device that apps are given",
    ),
]
FileMode = Annotated[str, text(r"0[0-7]{3}", 'write four octal digits in quotes, "0600"', what="not a file mode")]
UrlPath = Annotated[
    str, text(r"/[A-Za-z0-9_.~!$&'()*+,;=:@%/?-]{0,255}", "write a path such as /health", what="not a URL path")
]
WebAddress = Annotated[
    str,
    text(r"(?=.{1,300}$)https://[a-z0-9.-]+(:[0-9]{1,5})?(/[!-~]*)?", "write an https:// address", what="not a link"),
]
ContainerName = Annotated[
    str,
    text(
        r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}",
        "write a container's name as `podman ps` shows it",
        what="not a name of a container",
    ),
]
Argument = Annotated[str, line(4096, empty=True)]
Title = Annotated[str, line(80)]
Summary = Annotated[str, line(240, empty=True)]
Truth = Annotated[bool, BeforeValidator(_truth)]
Size = Annotated[
    int, BeforeValidator(_size), WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,12}(B|KiB|MiB|GiB|TiB)$"})
]
Cpus = Annotated[str, BeforeValidator(_cpus)]
Port = Annotated[int, whole(1, 65535)]
PortReference = Annotated[int | str, BeforeValidator(_port_reference)]
HostPort = Annotated[int | str, BeforeValidator(_host_port)]
Seconds = Annotated[int, whole(1, 86_400)]
RelativePath = Annotated[str, BeforeValidator(_relative)]
ContainerPath = Annotated[str, BeforeValidator(_inside), AfterValidator(_no_host_socket)]
VersionRange = Annotated[str, BeforeValidator(_constraint)]
