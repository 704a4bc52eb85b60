"""Planning for one app among others: it sees all of its own and what it shares, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from apps.names import AppName
from orchestrator.links import Installed, linked
from orchestrator.names import Names
from orchestrator.plan import Observed, Wanted, plan
from orchestrator.podman import ContainerSeen, ImageSeen, Inventory
from orchestrator.quadlet.render import Target, render
from orchestrator.quadlet.rendered import RenderedApp
from orchestrator.steps import RemoveLink
from orchestrator.systemd import UnitState
from orchestrator.unit_folder import OwnedFile
from tests.orchestrator.test_render import stack

# Ids of which one begins with the other, and one of another publisher
APPS = [AppName("did:key:zA", "ab"), AppName("did:key:zA", "ab-db"), AppName("did:key:zB", "ab")]


def rendered(name: AppName) -> RenderedApp:
    return render(stack(id=name.id), Names("archy", name), Target("archy", (5, 4, 2), "amd64"))


def in_order(apps: list[RenderedApp]) -> Observed:
    boxes = [(app, box) for app in apps for box in app.containers]
    links = {network.name: network for app in apps for network in app.links}
    return Observed(
        {n: OwnedFile(app.names.slug, text) for app in apps for n, text in {**app.files, **app.boot}.items()},
        {box.service: UnitState(box.service, "loaded", "active", "running") for _, box in boxes},
        tuple(
            ContainerSeen(
                b.name, b.name, "running", b.config, {"archy.spec": b.spec, "archy.app": a.names.slug},
                networks=frozenset({a.network, *b.joined}),
            )
            for a, b in boxes
        ),
        Inventory(
            tuple(ImageSeen(b.config, b.image.split("@")[1], b.image.split("@")[0], "1") for _, b in boxes),
            {app.network: app.network_spec for app in apps},
            {volume: app.names.slug for app in apps for volume in app.volumes},
            frozenset(app.names.secret(label) for app in apps for label in app.secrets),
            links,
        ),
    )  # fmt: skip


def without(seen: Observed, kind: str, slug: str) -> Observed:
    """The look after everything of one kind of one app is gone."""
    assert seen.containers is not None
    assert seen.inventory is not None
    match kind:
        case "files":
            return replace(seen, files={n: f for n, f in seen.files.items() if f.owner != slug})
        case "containers":
            left = tuple(box for box in seen.containers if box.labels["archy.app"] != slug)
            return replace(seen, containers=left)
        case "images":
            left_images = tuple(i for i in seen.inventory.images if f"/{slug}/" not in i.name)
            return replace(seen, inventory=replace(seen.inventory, images=left_images))
        case _:
            secrets = frozenset(s for s in seen.inventory.secrets if not s.startswith(f"archy-{slug}-"))
            return replace(seen, inventory=replace(seen.inventory, secrets=secrets))


@given(st.sampled_from(["files", "containers", "images", "secrets"]), st.integers(0, 2), st.integers(0, 2))
def test_what_one_app_lacks_is_planned_for_it_and_for_no_other(kind: str, lacking: int, asked: int) -> None:
    apps = [rendered(name) for name in APPS]
    seen = without(in_order(apps), kind, apps[lacking].names.slug)
    assert bool(plan(Wanted(apps[asked], True), seen)) == (lacking == asked)


def test_the_containers_of_both_sides_leave_a_shared_network_that_is_no_longer_wanted() -> None:
    exports = {"exports": [{"name": "api", "port": "web"}]}
    own, other = (Installed(name, stack(id=name.id, **exports), "running") for name in APPS[:2])
    target = Target("archy", (5, 4, 2), "amd64")
    links = [linked(own, {"other": other}, [], "archy"), linked(other, {}, [("other", own)], "archy")]
    both = [
        render(app.manifest, Names("archy", app.name), target, link)
        for app, link in zip((own, other), links, strict=True)
    ]
    steps = plan(Wanted(rendered(own.name), True), in_order(both))
    (left,) = [step for step in steps if isinstance(step, RemoveLink) and not step.kept]
    ours = {both[0].names.container(label) for label in ("web", "db")}
    assert set(left.containers) == ours | {both[1].names.container("web")}


def test_a_container_that_took_the_apps_name_without_its_mark_is_seen() -> None:
    app = rendered(APPS[0])
    seen = in_order([app])
    assert seen.containers is not None
    stranger = replace(seen.containers[0], labels={})
    assert plan(Wanted(app, True), replace(seen, containers=(stranger, *seen.containers[1:])))
