"""The shapes inside a manifest: containers, volumes, settings and the rest, frozen once parsed.

Each class is one mapping of the YAML. What holds between parts (a mount names a declared volume) is in
`apps.manifest_rules`; what this node can carry out is the orchestrator's to say. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from apps.manifest_values import (
    AliasName,
    AppId,
    Architecture,
    Argument,
    Blake3,
    Capability,
    ContainerName,
    ContainerPath,
    Cpus,
    Device,
    EnvName,
    FileMode,
    HostPort,
    ImageReference,
    Label,
    Owner,
    Port,
    PortReference,
    RelativePath,
    Seconds,
    SettingName,
    Sha256,
    Size,
    Summary,
    Truth,
    UrlPath,
    User,
    VersionRange,
    whole,
    wrong,
)
from apps.names import MAX_BLOB_SIZE, PIECE_SIZE, BlobRef, Digest

K = TypeVar("K")
V = TypeVar("V")


def _tuple(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(value)
    raise wrong("not a list", "write a list: [one, two], or one item per line after a hyphen")


def _mapping(value: object) -> object:
    if isinstance(value, Mapping):
        return value
    raise wrong("not a mapping", "write keys and values")


def _freeze(value: dict[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(value)


Frozen = Annotated[
    Mapping[K, V],
    BeforeValidator(_mapping),
    AfterValidator(_freeze),
    PlainSerializer(lambda value: {str(key): _plain(item) for key, item in value.items()}),
]
Many = Annotated[tuple[V, ...], BeforeValidator(_tuple)]


def _plain(value: object) -> object:
    return value.canonical() if isinstance(value, Part) else value


COMPANION_GRACE = 10
"""Seconds; a companion keeps nothing that it would have to write down at its end."""


class Part(BaseModel):
    """One mapping: unknown keys are refused, nothing changes after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)

    def canonical(self) -> dict[str, Any]:
        """JSON values; keys that hold their default are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


class BlobEntry(Part):
    """Bytes named by content."""

    blake3: Blake3
    size: Annotated[int, whole(0, MAX_BLOB_SIZE)]
    pieces: Blake3 | None = None

    @model_validator(mode="after")
    def _pieces_above_one_piece(self) -> BlobEntry:
        if (self.pieces is not None) != (self.size > PIECE_SIZE):
            raise wrong("a blob has `pieces` exactly when it is larger than 1 MiB", "pack the app again")
        return self

    @property
    def blob(self) -> BlobRef:
        """The shared form of this reference."""
        return BlobRef(Digest(self.blake3), self.size, Digest(self.pieces) if self.pieces else None)


class Platform(Part):
    """One architecture's image: the OCI manifest's and config's digests, and the blob that lists its layers."""

    arch: Architecture
    manifest: Sha256
    config: Sha256
    index: BlobEntry


class Image(Part):
    """Where an image came from and, once packed, what exactly it is."""

    ref: ImageReference
    platforms: Many[Platform] = ()


class Build(Part):
    """An image that is built on the node, without network, from bases pinned by digest."""

    context: RelativePath
    bases: Many[Sha256] = ()


class PortSpec(Part):
    """A port inside the container; `host` publishes it."""

    name: Label
    container: Port
    host: HostPort | None = None
    bind: Literal["lan", "loopback"] = "loopback"
    protocol: Literal["tcp", "udp"] = "tcp"


class SecretUse(Part):
    """A generated secret inside a container, as a file or (it shows in `podman inspect`) a variable."""

    name: Label
    file: ContainerPath | None = None
    env: EnvName | None = None


class Mount(Part):
    """A volume of the app inside a container. `exclusive`: at most one container may ever have it."""

    volume: Label
    path: ContainerPath
    exclusive: Truth = False
    read_only: Truth = False


class HttpCheck(Part):
    """Healthy when GET answers 200 to 399."""

    port: PortReference
    path: UrlPath = "/"


class TcpCheck(Part):
    """Healthy when the port accepts a connection."""

    port: PortReference


class Health(Part):
    """Exactly one of http, tcp and cmd (runs inside the container); times are seconds."""

    http: HttpCheck | None = None
    tcp: TcpCheck | None = None
    cmd: Many[Argument] = ()
    interval: Seconds = 15
    timeout: Seconds = 5
    retries: Annotated[int, whole(1, 100)] = 3
    start_period: Annotated[int, whole(0, 7200)] = 60


class Resources(Part):
    """Upper limits; absent means the node's default."""

    memory: Size | None = None
    cpus: Cpus | None = None
    pids: Annotated[int, whole(1, 1_000_000)] | None = None


class Security(Part):
    """What a container gets beyond nothing: all capabilities are dropped and the root is read-only by default."""

    capabilities: Many[Capability] = ()
    read_only: Truth = True
    devices: Many[Device] = ()


class Container(Part):
    """One container of the app."""

    image: Image | None = None
    build: Build | None = None
    command: Many[Argument] = ()
    entrypoint: Many[Argument] = ()
    user: User | None = None
    working_dir: ContainerPath | None = None
    needs: Many[Label] = ()
    ports: Many[PortSpec] = ()
    environment: Frozen[EnvName, Argument] = Field(default_factory=lambda: MappingProxyType({}))
    secrets: Many[SecretUse] = ()
    mounts: Many[Mount] = ()
    network_aliases: Many[AliasName] = ()
    stop_grace_secs: Annotated[int, whole(1, 3600)] = 30
    health: Health | None = None
    resources: Resources = Resources()
    security: Security = Security()


class Dump(Part):
    """A consistent copy of a volume, written to standard output by a command inside a container."""

    in_: Label = Field(alias="in")
    cmd: Many[Argument]


class DumpBackup(Part):
    """Back the volume up by its dump."""

    dump: Dump


class Volume(Part):
    """Named data of the app. `owner` is uid:gid inside the container."""

    backup: Literal["include", "exclude"] | DumpBackup = "include"
    on_uninstall: Literal["keep", "remove"] = "keep"
    owner: Owner | None = None


class Companion(Part):
    """A container beside the app that serves one of its containers."""

    image: Image | None = None
    build: Build | None = None
    serves: Label
    ports: Many[PortSpec] = ()
    environment: Frozen[EnvName, Argument] = Field(default_factory=lambda: MappingProxyType({}))
    resources: Resources = Resources()

    def as_container(self) -> Container:
        """The container it is: started after what it serves, with nothing of its own to lose."""
        return Container(
            image=self.image,
            build=self.build,
            needs=(self.serves,),
            ports=self.ports,
            environment=self.environment,
            resources=self.resources,
            stop_grace_secs=COMPANION_GRACE,
        )


class Requires(Part):
    """What the node must be."""

    node: VersionRange | None = None
    podman: VersionRange | None = None


class Dependency(Part):
    """Another app that this one needs."""

    id: AppId
    any_of: Many[AppId] = ()
    version: VersionRange | None = None
    need: Literal["installed", "running", "healthy"] = "healthy"
    optional: Truth = False
    settings: Frozen[SettingName, Argument] = Field(default_factory=lambda: MappingProxyType({}))


class GeneratedSecret(Part):
    """Random bytes made once per installation, written as text in the encoding."""

    name: Label
    bytes: Annotated[int, whole(8, 1024)] = 32
    encoding: Literal["hex", "base64", "base64url"] = "hex"


class DerivedFile(Part):
    """A file that is a pure function of secrets, settings and what dependencies export.

    `into`: container -> folder in it where the file appears under dest's last name, read-only and owned by root. The
    folder holds derived files only. `reload` sends SIGHUP.
    """

    template: RelativePath
    dest: RelativePath
    into: Frozen[Label, ContainerPath]
    mode: FileMode = "0600"
    on_change: Literal["restart", "reload", "none"] = "restart"


class Setting(Part):
    """What the operator may change."""

    name: SettingName
    type: Literal["text", "number", "truth", "size"] = "text"
    title: Summary = ""
    default: Argument
    env: Frozen[Label, EnvName] = Field(default_factory=lambda: MappingProxyType({}))


class Export(Part):
    """What a dependant gets."""

    name: Label
    port: Label | None = None
    secret: Label | None = None
    setting: SettingName | None = None


class Interface(Part):
    """A door of the app: something a person opens, or a service."""

    id: Label
    type: Literal["ui", "api", "tor"]
    port: Label
    path: UrlPath = "/"
    virtual_port: Port | None = None


class Permissions(Part):
    """What the operator is asked to allow. Only what is enforced."""

    internet: Literal["none", "outbound"] = "none"
    host_network: Truth = False
    devices: Many[Literal["gpu", "serial", "video"]] = ()


class CopyFromHost(Part):
    """One of the app's own assets, copied into a container (`container:/path`)."""

    src: RelativePath
    dest: Argument


class Exec(Part):
    """A command inside a container, with a deadline in seconds."""

    in_: Label = Field(alias="in")
    argv: Many[Argument]
    timeout: Seconds = 60


class Hook(Part):
    """Exactly one action."""

    copy_from_host: CopyFromHost | None = None
    exec: Exec | None = None


class Hooks(Part):
    """What runs at fixed moments of the app's life."""

    post_install: Many[Hook] = ()


class Migration(Part):
    """A step between versions."""

    from_: VersionRange = Field(alias="from")
    exec: Exec
    reversible: Truth = False


class Updates(Part):
    """How the app is updated. `health_window_secs`: how long a new version may take to become healthy."""

    from_: VersionRange | None = Field(default=None, alias="from")
    strategy: Literal["stop-start", "stop-snapshot-start"] = "stop-start"
    health_window_secs: Seconds | None = None
    rollback: Literal["auto", "off"] = "auto"
    migrations: Many[Migration] = ()


MAX_ADOPTED = 64
"""Names to look for: two for each of the 32 containers that an app may have."""


def _few(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) > MAX_ADOPTED:
        raise wrong(f"{len(names)} names", f"name at most {MAX_ADOPTED} containers")
    return names


class Adopt(Part):
    """Where to look for containers of an installation by other means, which the app offers to take over as they run.

    The names stand in no order and beside one another; which container of the app each one is, its image's digest says.
    """

    container_names: Annotated[Many[ContainerName], AfterValidator(_few)] = ()


class Disk(Part):
    """Bytes: what an installation needs, and what must stay free afterwards."""

    install: Size | None = None
    min_free: Size | None = None
