"""The node's settings: one small YAML file that the operator may edit, read strictly and written atomically."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from market.errors import Problem, UsageProblem

if TYPE_CHECKING:
    from market.trust.policy import Policy

MAX_CONFIG_BYTES: Final = 64 * 1024
"""A settings file is a screenful; anything larger is not one."""


_LISTS: Final = frozenset({"peers", "never_allow", "unshared"})
"""Settings that are written as comma-separated words."""


def _listen_address(value: str) -> str:
    if value:
        split_address(value)
    return value


def _http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")) or any(c.isspace() for c in value):
        raise ValueError("is not an http:// or https:// URL")
    return value.rstrip("/")


def _own_url(value: str) -> str:
    return _http_url(value) if value else ""


def split_address(value: str) -> tuple[str, int]:
    """`HOST:PORT` (IPv6 in brackets) as (host, port). Raises ValueError with a sentence for people."""
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("is not HOST:PORT, for example 127.0.0.1:8470 or [::1]:8470")
    return host.removeprefix("[").removesuffix("]"), int(port)


class NodeConfig(BaseModel):
    """What an operator can set. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: Annotated[str, AfterValidator(_listen_address)] = Field(
        "", description="HOST:PORT where this node serves blobs to peers; empty: it serves none"
    )
    peers: tuple[Annotated[str, AfterValidator(_http_url)], ...] = Field(
        (), max_length=64, description="base URLs of peers that are asked for blobs"
    )
    allow_private_origins: bool = Field(
        False, description="fetch from private or loopback addresses that a publisher signed as origins"
    )
    share: bool = Field(True, description="serve the blobs of installed apps to peers")
    unshared: tuple[Annotated[str, Field(pattern=r"^[!-~]{1,200}$")], ...] = Field(
        (), max_length=64, description="apps (ID or PUBLISHER/ID) whose blobs are not served to peers"
    )
    upload_mbit: int = Field(0, ge=0, le=1_000_000, description="Mbit/s for peers, all together; 0: no limit")
    lan: bool = Field(False, description="find nodes on this network by mDNS, and be found by them")
    announce: Annotated[str, AfterValidator(_own_url)] = Field(
        "", description="this node's URL for others; said on the relays with the apps that are served; empty: not said"
    )
    channel: str = Field("stable", pattern=r"^[a-z0-9-]{1,32}$", description="the release channel that is offered")
    allow_at: int = Field(62, ge=0, le=100, description="points from which an app installs without a question")
    allow_powerful_at: int = Field(
        80, ge=0, le=100, description="the same for apps that use the host's network, devices or capabilities"
    )
    refuse_below: int = Field(10, ge=0, le=100, description="points below which nothing is installed")
    never_allow: tuple[Annotated[str, Field(pattern=r"^[!-~]{1,200}$")], ...] = Field(
        (), max_length=64, description="permissions that are refused whoever asks"
    )
    attest_running: bool = Field(
        False, description="publish, signed by this home's identity, that a release ran here for 7, 30, 90, 365 days"
    )
    unit_prefix: str = Field(
        "archy", pattern=r"^[a-z][a-z0-9]{0,15}$", description="the first word of every unit this node writes"
    )

    @model_validator(mode="after")
    def _thresholds(self) -> NodeConfig:
        try:
            _ = self.policy
        except UsageProblem as problem:
            raise ValueError(f"{problem.what}: {problem.remedy}") from problem
        return self

    @property
    def policy(self) -> Policy:
        """What the operator lets happen at which score."""
        # Imported late: every command reads this module for addresses, and few need what trust is computed with.
        from market.trust.policy import Policy

        return Policy(self.allow_at, self.refuse_below, self.allow_powerful_at)


def load_config(path: Path) -> NodeConfig:
    """Read the settings; a missing file means the defaults. Raises Problem with the key and what would be right."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        return NodeConfig()
    except OSError as error:
        raise Problem(f"can not read the settings: {error.strerror}", where=str(path)) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise Problem(f"larger than {MAX_CONFIG_BYTES} bytes", where=str(path), remedy="write the settings anew")
    try:
        values = yaml.safe_load(raw) or {}
    except yaml.YAMLError as error:
        raise Problem(f"not YAML: {' '.join(str(error).split())}", where=str(path), remedy="mend the file") from error
    if not isinstance(values, dict):
        raise Problem("not a mapping of settings", where=str(path), remedy="write one `key: value` a line")
    return _validated(values, str(path))


def changed_config(config: NodeConfig, assignments: tuple[str, ...]) -> NodeConfig:
    """Apply `KEY=VALUE` words; lists are comma-separated. Raises UsageProblem for an unknown key or a bad value."""
    values: dict[str, Any] = config.model_dump()
    for word in assignments:
        key, equals, value = word.partition("=")
        if not equals or key not in NodeConfig.model_fields:
            known = ", ".join(NodeConfig.model_fields)
            raise UsageProblem(f"no setting {key!r}", remedy=f"KEY=VALUE with a key of: {known}")
        values[key] = [part for part in value.split(",") if part] if key in _LISTS else value
    try:
        return _validated(values, "settings")
    except Problem as problem:
        raise UsageProblem(problem.what, where=problem.where, remedy=problem.remedy) from problem


def save_config(path: Path, config: NodeConfig) -> None:
    """Write a temporary file, flush it, rename it over the old one. Raises Problem; the old file then stays."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".config-")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise Problem(f"can not write the settings: {error.strerror}", where=str(path)) from error


def _validated(values: dict[Any, Any], where: str) -> NodeConfig:
    try:
        return NodeConfig.model_validate(values)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise Problem(told, where=where, remedy="see `archy config --help` for the settings") from error
