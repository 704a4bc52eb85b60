"""Images that are built on the node, on real systemd and Podman: packed, published and installed through `archy`.

The app is the gate's notes, whose companion is built from nothing and a context with busybox in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.gate.stand import APPS, WORK, GateApp, GateFailure, Stand
from tests.system.lab import Base, Node

NOTES = next(app for app in APPS if app.id == "notes")
FAILING = GateApp("failing", 18095, ("server", "ui"), (0.0, 60.0), built=("ui",))
BASED = GateApp("based", 18097, ("server", "ui"), (0.0, 60.0), built=("ui",))
POISONED = GateApp("poisoned", 18098, ("server", "ui"), (0.0, 60.0), built=("ui",))
SLOW = GateApp("slow", 18096, ("server", "ui"), (0.0, 60.0), built=("ui",))


@pytest.fixture(scope="module")
def stand(lab_base: Base) -> Iterator[Stand]:
    with Node.boot(lab_base, "builds") as node:
        yield Stand(node, (NOTES,))


def other(stand: Stand, app: GateApp, run: str) -> None:
    """Publish a copy of notes that runs one more command in its build."""
    script = (
        f"cp -r made/notes made/{app.id} && cp -r made/notes-server made/{app.id}-server && cd made/{app.id} && "
        f"sed -i 's/^id: notes/id: {app.id}/; s/18094/{app.port}/' manifest.yml && "
        f"sed -i '5i RUN [\"/bin/busybox\", {run}]' context/ui/Containerfile"
    )
    stand.node.run(["sh", "-c", script], cwd=WORK)
    stand.publish(app)
    stand.wait(lambda: stand.offers(app), f"{app.id} is not offered")


def left(app: GateApp) -> str:
    """A script that lists all in the node that has the app's name, and whatever builders left."""
    return (
        f"ls ~/.config/containers/systemd | grep -- -{app.id}-;"
        f"podman ps -a --external | grep -e /{app.id}- -e buildah;"
        f"podman images -a | grep -e /{app.id}- -e '<none>'; podman network ls | grep -- -{app.id}-;"
        f"podman secret ls | grep -- -{app.id}-; ls {WORK}/op/apps/builds | grep -- ^{app.id}-;"
        f"systemctl --user list-units --all --no-legend | grep -- -{app.id}-"
    )


def left_of(stand: Stand, app: GateApp) -> str:
    return stand.shell(left(app))


def image_of(stand: Stand, app: GateApp) -> str:
    return stand.shell(
        f"podman images --format '{{{{.ID}}}} {{{{.Tag}}}}' --filter 'reference=*/{app.id}-*/ui'"
    ).strip()


@pytest.mark.timeout(300)
def test_an_app_with_a_companion_built_on_the_node_is_installed_offline_and_answers(stand: Stand) -> None:  # R-MF12
    stand.archy("install", "notes", "--yes")
    page = stand.page(NOTES)
    assert page["counter"] == 1
    unit = stand.shell("cat ~/.config/containers/systemd/*notes*-ui.container")
    assert "/ui@sha256:" in unit
    assert "0" * 64 not in unit
    running = stand.shell("podman ps --format '{{.Names}} {{.ImageID}}' | grep -- -ui").split()[1]
    image, tag = image_of(stand, NOTES).split()
    assert image.startswith(running[:12]) or running.startswith(image)
    assert f"archy.build={tag}" in unit, "the tag does not name the inputs"
    assert "buildah" not in stand.shell("podman ps -a --external")
    assert "<none>" not in stand.shell("podman images -a")


def test_a_restart_of_the_node_and_of_the_machine_builds_nothing(stand: Stand) -> None:  # R-ST16
    count = "journalctl --user -u '*-build.service' -o cat | grep -c ^COMMIT"
    before = stand.shell(count)
    stand.node.reboot()
    stand.serve()
    stand.wait(lambda: stand.answers(NOTES), "notes does not come back")
    assert stand.page(NOTES)["counter"] == 2
    commits = stand.shell("journalctl --user -b -u '*-build.service' -o cat | grep -c ^COMMIT").strip()
    assert commits in ("0", before.strip()), "an image was built by a boot"


def test_an_image_that_is_lost_is_built_again_and_is_the_same(stand: Stand) -> None:  # R-FM6
    before, secret = image_of(stand, NOTES), stand.page(NOTES)["secret_sha256"]
    stand.archy("stop", "notes")
    stand.shell("podman rmi -f $(podman images -q --filter 'reference=*/notes-*/ui')")
    assert image_of(stand, NOTES) == ""
    stand.archy("start", "notes")
    assert image_of(stand, NOTES) == before
    assert stand.page(NOTES)["secret_sha256"] == secret


@pytest.mark.timeout(300)
def test_an_update_of_one_file_builds_and_restarts_that_container_alone(stand: Stand) -> None:  # R-ST19
    before, image = stand.started(NOTES), image_of(stand, NOTES)
    script = "sed -i 's/1\\.0\\.0/1.1.0/' manifest.yml && echo 'another page' > context/ui/www/index.html"
    stand.node.run(["sh", "-c", script], cwd=f"{WORK}/made/notes")
    stand.publish(NOTES)
    stand.wait(lambda: any(row["version"] == "1.1.0" for row in stand.archy("search", "notes")["results"]), "no 1.1.0")
    stand.archy("update", "notes", "--yes")
    after = stand.started(NOTES)
    changed = {name.rpartition("-")[2] for name in before if before[name] != after[name]}
    assert changed == {"ui"}
    assert image in image_of(stand, NOTES), "nothing is there to go back to"


@pytest.mark.timeout(300)
def test_a_build_that_wants_a_network_fails_with_its_reason_and_leaves_nothing(stand: Stand) -> None:  # R-MF12, R-ST10
    other(stand, FAILING, '"wget", "-T", "5", "-qO-", "http://192.0.2.1/"')
    with pytest.raises(GateFailure, match=r"the image of ui can not be built.*wget") as caught:
        stand.archy("install", "failing", "--yes")
    assert "journalctl" in str(caught.value)
    assert left_of(stand, FAILING) == ""
    assert stand.answers(NOTES)


def test_a_containerfile_that_reaches_outside_is_not_even_packed(stand: Stand) -> None:  # R-MF12
    file = "made/reaching/context/ui/Containerfile"
    script = f"cp -r made/notes made/reaching && printf 'ADD http://x /\\nFROM alpine\\n' >> {file}"
    stand.node.run(["sh", "-c", script], cwd=WORK)
    for words in (
        ("validate", "made/reaching"),
        ("pack", "made/reaching", "--image", "server=made/notes-server", "--out", "x"),
    ):
        with pytest.raises(GateFailure, match=r"line \d+: ADD is not allowed"):
            stand.archy("app", *words, home="pub")


@pytest.mark.timeout(300)
def test_a_build_begins_with_an_image_of_its_own_app(stand: Stand) -> None:  # R-MF12
    digest = stand.shell(f"grep -o 'sha256:[0-9a-f]*' {WORK}/made/notes-server/index.json").split()[0]
    script = (
        "cp -r made/notes made/based && cp -r made/notes-server made/based-server && cd made/based && "
        "sed -i 's/^id: notes/id: based/; s/18094/18097/' manifest.yml && "
        f"sed -i 's/context: context.ui/&, bases: [\"{digest}\"]/' manifest.yml && "
        f'printf \'FROM server@{digest}\\nCOPY www /www\\nCMD ["/bin/sh", "/serve"]\\n\' > context/ui/Containerfile'
    )
    stand.node.run(["sh", "-c", script], cwd=WORK)
    stand.publish(BASED)
    stand.wait(lambda: stand.offers(BASED), "based is not offered")
    stand.archy("install", "based", "--yes")
    assert stand.page(BASED)["counter"] == 1
    stand.archy("uninstall", "based", "--purge", "based")
    assert left_of(stand, BASED) == ""


@pytest.mark.timeout(300)
def test_the_node_killed_in_the_middle_of_a_build_leaves_nothing_and_builds_when_asked_again(stand: Stand) -> None:
    other(stand, SLOW, '"sleep", "8"')  # chaos 1
    command = stand.node.popen(["archy", "--home", f"{WORK}/op", "install", "slow", "--yes"], cwd=WORK)
    building = "systemctl --user is-active '*-slow-*-build.service'"
    stand.wait(lambda: "activating" in stand.shell(building), "nothing is built")
    stand.node.run(["systemctl", "--user", "kill", "--signal=KILL", "--kill-whom=main", "archy.service"])
    command.kill()
    stand.wait(lambda: stand.archy("ps", codes=(0, 5)) is not None, "the node does not come back")
    stand.node.wait_until(["sh", "-c", f'test -z "$({left(SLOW)})"'], timeout=90)
    stand.archy("install", "slow", "--yes")
    assert stand.answers(SLOW)
    stand.archy("uninstall", "slow")
    assert left_of(stand, SLOW) == ""


@pytest.mark.timeout(300)
def test_a_step_that_somebody_else_left_in_the_store_is_not_taken_for_one_of_the_build(stand: Stand) -> None:
    says = "/bin/busybox sleep 4; if [ -e /evil/x ]; then echo poisoned; else echo clean; fi > /bin/mark"
    other(stand, POISONED, f'"sh", "-c", "{says}"')  # R-MF12: an attack on the layers of a build
    command = stand.node.popen(["archy", "--home", f"{WORK}/op", "install", "poisoned", "--yes"], cwd=WORK)
    building = "systemctl --user is-active '*-poisoned-*-build.service'"
    stand.wait(lambda: "activating" in stand.shell(building), "nothing is built")
    copied = (
        f"cp -a {WORK}/op/apps/builds/poisoned-*/ui {WORK}/copy && sed -n 's/^FROM \\([^ ]*\\).*/\\1/p' {WORK}/copy/C*"
    )
    base = stand.shell(copied).split()[0]
    command.wait_output("is running", 90)
    mark = "podman exec $(podman ps --format '{{.Names}}' | grep poisoned.*ui) /bin/busybox cat /bin/mark"
    stand.wait(lambda: stand.shell(mark) == "clean\n", "the build did not write what it says")
    stand.archy("uninstall", "poisoned", "--purge", "poisoned")
    assert left_of(stand, POISONED) == ""

    # The same steps on the same base with another outcome, as whoever writes an image's history can have them
    build = "podman build --layers --timestamp=0 --identity-label=false --network=none --pull=never --file copy/C*"
    evil = f"podman pull -q oci:copy/scratch:{base} && mkdir evil && touch evil/x"
    said = stand.shell(f"cd {WORK} && {evil} && {build} --volume $PWD/evil:/evil --tag localhost/evil copy/context")
    assert "COMMIT localhost/evil" in said, said
    said = stand.shell(f"cd {WORK} && {build} --tag localhost/victim copy/context")
    inside = 'podman run --rm --network=none --entrypoint=\'["/bin/busybox", "cat", "/bin/mark"]\' localhost/victim'
    assert stand.shell(inside) == "poisoned\n", (
        f"this Podman takes nothing from the store, and the attack is none: {said}"
    )

    stand.archy("install", "poisoned", "--yes", "--offline")
    assert stand.shell(mark) == "clean\n"
    stand.archy("uninstall", "poisoned", "--purge", "poisoned")
    stand.shell("podman rmi -f localhost/evil localhost/victim; podman image prune -f")
    assert left_of(stand, POISONED) == ""


def test_a_file_that_changed_after_it_was_fetched_goes_into_no_build(stand: Stand) -> None:  # R-MF12
    before = image_of(stand, NOTES).splitlines()  # the version before it may be among them
    page = stand.shell(f"ls {WORK}/op/bundles/*/files/context/ui/www/index.html").split()
    kept = [stand.shell(f"cat {path}") for path in page]
    stand.archy("stop", "notes")
    try:
        for path in page:
            stand.shell(f"rm {path}; echo 'not what was signed' > {path}")
        stand.shell("podman rmi -f $(podman images -q --filter 'reference=*/notes-*/ui')")
        with pytest.raises(GateFailure, match=r"other bytes than were signed"):
            stand.archy("start", "notes")
        assert image_of(stand, NOTES) == ""
    finally:
        for path, text in zip(page, kept, strict=True):
            stand.node.write(path, text.encode())
    stand.archy("start", "notes")
    assert image_of(stand, NOTES) in before


def test_uninstalled_it_leaves_no_unit_no_image_and_nothing_of_its_builds(stand: Stand) -> None:  # R-ST10
    stand.archy("uninstall", "notes")
    assert left_of(stand, NOTES) == ""
    assert volumes(stand) == {"data", "drafts"}


def test_a_volume_of_no_use_without_the_app_goes_when_its_operator_says_yes_at_a_terminal(stand: Stand) -> None:
    for answer, kept in (("n", {"data", "drafts"}), ("y", {"data"})):  # R-ST10
        stand.archy("install", "notes", "--yes", "--offline")
        command = f"archy --home {WORK}/op uninstall notes"
        said = stand.shell(f"printf '{answer}\\n' | script --quiet --return --command '{command}' /dev/null")
        assert "Remove its volume drafts with all data?" in said
        assert ("kept, without drafts" in said) == (answer == "y"), said
        assert volumes(stand) == kept


def volumes(stand: Stand) -> set[str]:
    listed = stand.shell("podman volume ls --format '{{.Name}}' | grep -- -notes-").split()
    return {name.rpartition("-")[2] for name in listed}
