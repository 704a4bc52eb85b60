"""Dependencies between apps: who serves whom, what a dependant gets, and the network the two share.

Guarantees: a dependency is served by an app that fits in version, settings and state, of the same publisher first;
a link once made stays with its provider, so that an app of the same id from somebody else never takes a dependant
over (R-MF14); cycles are refused; each pair of apps shares a network of its own, so that two dependants of one
provider do not meet. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from apps.manifest import Manifest
from apps.manifest_parts import Dependency
from apps.manifest_values import satisfies
from apps.names import AppName
from apps.problems import Refused
from orchestrator.choices import Link
from orchestrator.names import Names


class NeedsOthers(Refused):
    """A dependency that nothing on this node serves as it has to be."""

    kind: ClassVar[str] = "dependency"


class StillNeeded(Refused):
    """Other apps need what was to be changed or removed."""

    kind: ClassVar[str] = "still-needed"


@dataclass(frozen=True, slots=True)
class Installed:
    """An app of this node as dependencies see it: its manifest as it runs here, and its user's word."""

    name: AppName
    manifest: Manifest
    desired: str


@dataclass(frozen=True, slots=True)
class LinkNetwork:
    """The network of one pair. `spec` tells whether names outside may be asked for there."""

    name: str
    provider: str
    dependant: str
    """Slugs."""
    spec: str


@dataclass(frozen=True, slots=True)
class Linked:
    """What links add to an app's units: networks, by container those it joins with its names there, and an order."""

    networks: tuple[LinkNetwork, ...] = ()
    joined: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    after: tuple[str, ...] = ()


def resolve(
    app: AppName, manifest: Manifest, installed: Sequence[Installed], kept: Mapping[str, AppName]
) -> dict[str, AppName]:
    """Who serves each dependency; optional ones that nobody serves are left out.

    Raises NeedsOthers, naming everything that is missing and the command that mends it.
    """
    found: dict[str, AppName] = {}
    lacking: list[tuple[str, str]] = []
    for dependency in manifest.dependencies:
        candidates = _candidates(app, dependency, installed, kept.get(dependency.id))
        reasons = [(other, _unfit(dependency, other)) for other in candidates]
        fit = [other for other, (what, _) in reasons if not what]
        if len(fit) > 1 and _rank(app, dependency, fit[0]) == _rank(app, dependency, fit[1]):
            both = f"{fit[0].name} and {fit[1].name}"
            if fit[0].name != kept.get(dependency.id):
                lacking.append((f"both {both} could serve {dependency.id}", f"uninstall one of {both}"))
                continue
        if fit:
            found[dependency.id] = fit[0].name
        elif not dependency.optional:
            choice = " or ".join(dependency.any_of or (dependency.id,))
            none = (f"{choice} is not installed", f"archy install {(dependency.any_of or (dependency.id,))[0]}")
            lacking.append(reasons[0][1] if reasons else none)
    if lacking:
        what, remedy = "; ".join(text for text, _ in lacking), "; ".join(text for _, text in lacking)
        raise NeedsOthers(f"{app.id} needs other apps: {what}", where=app.id, remedy=remedy)
    return found


def _candidates(
    app: AppName, dependency: Dependency, installed: Sequence[Installed], kept: AppName | None
) -> list[Installed]:
    wanted = dependency.any_of or (dependency.id,)
    able = [other for other in installed if other.name.id in wanted and other.name != app]
    return sorted(able, key=lambda other: (other.name != kept, _rank(app, dependency, other), other.name))


def _rank(app: AppName, dependency: Dependency, other: Installed) -> tuple[bool, int]:
    wanted = dependency.any_of or (dependency.id,)
    return other.name.publisher != app.publisher, wanted.index(other.name.id)


def _unfit(dependency: Dependency, other: Installed) -> tuple[str, str]:
    """What keeps an app from serving a dependency, and the remedy; two empty texts when it serves."""
    id_, have = other.name.id, other.manifest.version
    if dependency.version is not None and not satisfies(have, dependency.version):
        return f"{id_} is {have}, and {dependency.version} is needed", f"archy update {id_}"
    values = {setting.name: setting.default for setting in other.manifest.settings}
    differing = {key: value for key, value in dependency.settings.items() if values.get(key) != value}
    if unknown := sorted(set(differing) - set(values)):
        return f"{id_} has no setting {', '.join(unknown)}", f"archy update {id_}"
    if differing:
        wanted = " ".join(f"{key}={value}" for key, value in sorted(differing.items()))
        return f"{id_} has to be set to {wanted}", f"archy config {id_} {wanted}"
    if dependency.need != "installed" and other.desired != "running":
        return f"{id_} is stopped", f"archy start {id_}"
    return "", ""


def served_by(manifest: Manifest, providers: Sequence[AppName]) -> dict[str, AppName]:
    """Dependency -> the first of these apps that may serve it by its id."""
    found: dict[str, AppName] = {}
    for dependency in manifest.dependencies:
        for provider in providers:
            if provider.id in (dependency.any_of or (dependency.id,)):
                found.setdefault(dependency.id, provider)
    return found


def refuse_cycle(app: AppName, providers: Mapping[str, AppName], links: Sequence[Link]) -> None:
    """Raises NeedsOthers when an app would need itself through others (R-MF8)."""
    edges: dict[AppName, set[AppName]] = {}
    for link in links:
        if link.dependant != app:
            edges.setdefault(link.dependant, set()).add(link.provider)
    reached, front = set(providers.values()), list(providers.values())
    while front:
        for following in edges.get(front.pop(), set()) - reached:
            reached.add(following)
            front.append(following)
    if app in reached:
        through = ", ".join(sorted(name.id for name in reached - {app}))
        raise NeedsOthers(
            f"{app.id} would need itself through {through}",
            where=app.id,
            remedy="one of the publishers has to remove a dependency",
        )


def refuse_breaking(new: Installed, links: Sequence[Link], dependants: Mapping[AppName, Manifest]) -> None:
    """Raises StillNeeded when an app as it is about to be no longer serves those that it serves now."""
    for link in links:
        manifest = dependants.get(link.dependant)
        if link.provider != new.name or manifest is None:
            continue
        for dependency in manifest.dependencies:
            what, _ = _unfit(dependency, new) if dependency.id == link.dependency else ("", "")
            if what and not dependency.optional:
                raise StillNeeded(
                    f"{link.dependant.id} needs {new.name.id} as it is: {what}",
                    where=new.name.id,
                    remedy=f"update or uninstall {link.dependant.id} first",
                )


def needed_by(provider: AppName, links: Sequence[Link], manifests: Mapping[AppName, Manifest]) -> tuple[AppName, ...]:
    """The apps that can not do without one."""
    found = []
    for link in links:
        manifest = manifests.get(link.dependant)
        if link.provider == provider and manifest is not None:
            optional = {dependency.id for dependency in manifest.dependencies if dependency.optional}
            if link.dependency not in optional:
                found.append(link.dependant)
    return tuple(sorted(set(found)))


def network_of(prefix: str, dependant: Installed, provider: Installed) -> LinkNetwork:
    """The network that two apps share."""
    pair = f"{dependant.name.slug}\0{provider.name.slug}"
    outbound = all(app.manifest.permissions.internet == "outbound" for app in (dependant, provider))
    return LinkNetwork(
        f"{link_prefix(prefix)}{hashlib.sha256(pair.encode()).hexdigest()[:12]}",
        provider.name.slug,
        dependant.name.slug,
        "names" if outbound else "closed",
    )


def link_prefix(prefix: str) -> str:
    """How names of shared networks begin; no app's own network has twelve digits at its end."""
    return f"{prefix}-link-"


def linked(
    own: Installed, providers: Mapping[str, Installed], dependants: Sequence[tuple[str, Installed]], prefix: str
) -> Linked:
    """What links add to one app: `providers` by dependency, `dependants` with what they call it."""
    networks: dict[str, LinkNetwork] = {}
    joined: dict[str, dict[str, tuple[str, ...]]] = {}
    after: list[str] = []
    for provider in providers.values():
        network = network_of(prefix, own, provider)
        networks[network.name] = network
        for label in own.manifest.containers:
            joined.setdefault(label, {})[network.name] = ()
        after += [Names(prefix, provider.name).service(label) for label in provider.manifest.containers]
    for dependency, dependant in dependants:
        network = network_of(prefix, dependant, own)
        networks[network.name] = network
        for label, names in _exporting(own.manifest, dependency).items():
            before = joined.setdefault(label, {}).get(network.name, ())
            joined[label][network.name] = (*before, *names)
    return Linked(tuple(networks[name] for name in sorted(networks)), joined, tuple(sorted(set(after))))


def _exporting(manifest: Manifest, dependency: str) -> dict[str, tuple[str, ...]]:
    """Container -> the names under which a dependant reaches its exported ports: `<export>.<dependency>`."""
    found: dict[str, tuple[str, ...]] = {}
    for export in manifest.exports:
        for label, container in sorted(manifest.containers.items()):
            if any(port.name == export.port for port in container.ports):
                found[label] = (*found.get(label, ()), f"{export.name}.{dependency}")
    return found


def exported(dependency: str, provider: Installed, secrets: Mapping[str, str]) -> dict[str, Any]:
    """What a dependant's templates read of a provider: nothing but its exports."""
    settings = {setting.name: setting.default for setting in provider.manifest.settings}
    ports = {port.name: port.container for box in provider.manifest.containers.values() for port in box.ports}
    found: dict[str, Any] = {"id": provider.name.id, "version": provider.manifest.version}
    for export in provider.manifest.exports:
        given: dict[str, Any] = {}
        if export.port is not None:
            given |= {"address": f"{export.name}.{dependency}", "port": ports[export.port]}
        if export.secret is not None and export.secret in secrets:
            given["secret"] = secrets[export.secret]
        if export.setting is not None:
            given["setting"] = settings[export.setting]
        found[export.name] = given
    return found
