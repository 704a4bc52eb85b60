"""What manifests ask for beyond containers, on the real thing: systemd --user, Quadlet and rootless Podman."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from apps.names import AppName
from tests.orchestrator.driver import web_container
from tests.system.lab import SOURCE, Node
from tests.system.test_orchestrator import DEADLINE, DRIVER, STEM, UNITS, drive, left_behind, page, prop, sh, volumes

BUSYBOX = "/bin/busybox"
CONF = "greeting={{ settings.greeting }}\n{{ secrets.password|rpcauth('me') }}\n"


def slug(id_: str) -> str:
    return AppName("did:key:zAlice", id_).slug


@pytest.fixture
def clean(node: Node) -> Iterator[Node]:
    """The module's node; the apps are gone again afterwards, data included."""
    yield node
    for id_ in ("hello", "other", "third"):
        node.run([*DRIVER, "purge", json.dumps({"id": id_})], cwd=SOURCE, timeout=DEADLINE, check=False)


@pytest.mark.parametrize("on_change", ["restart", "reload"])
def test_derived_file_follows_settings_and_comes_back_when_edited(clean: Node, on_change: str) -> None:  # R-FM2
    derived = {"template": "t/app.conf", "dest": "app.conf", "into": {"web": "/run/conf"}, "on_change": on_change}
    derived["mode"] = "0444"
    copy = f"{BUSYBOX} cat /run/conf/app.conf > /data/seen"
    wait = f"while true; do {BUSYBOX} sleep 1 & wait $!; done"
    script = f"trap '{copy}' HUP; {copy}; {BUSYBOX} httpd -p 8080 -h /www; {wait}"
    web = web_container(18080, command=[BUSYBOX, "sh", "-c", script])
    more = {"derived_files": [derived], "settings": [{"name": "greeting", "default": "Hello"}]}
    drive(clean, "install", version="1.0.0", containers={"web": web}, manifest=more, files={"t/app.conf": CONF})
    begun = prop(clean, "ExecMainStartTimestampMonotonic")
    inside = f"podman exec {STEM}-web {BUSYBOX} cat"
    assert sh(clean, f"{inside} /run/conf/app.conf").startswith("greeting=Hello\nme:")
    settings = drive(clean, "configure", settings={"greeting": "Good day"})
    assert [s["value"] for s in settings] == ["Good day"]
    clean.wait_until(["sh", "-c", f"{inside} /data/seen | grep -q 'Good day'"], timeout=20)
    assert (prop(clean, "ExecMainStartTimestampMonotonic") == begun) == (on_change == "reload")
    path = sh(clean, "find /home/op/archy/data/derived -name app.conf").strip()
    sh(clean, f"chmod 600 {path}; echo greeting=mallory > {path}")
    drive(clean, "settle")
    clean.wait_until(["sh", "-c", f"{inside} /data/seen | grep -q 'Good day'"], timeout=20)
    assert sh(clean, f"{inside} /run/conf/app.conf").startswith("greeting=Good day\nme:")
    assert drive(clean, "secrets")["password"] == sh(clean, f"cat archy/data/secrets/{slug('hello')}/password")
    drive(clean, "purge")
    assert left_behind(clean) == ""
    assert volumes(clean) == []
    assert sh(clean, "ls -A archy/data/derived") == ""


CHAIN_EXPORTS = {
    "exports": [{"name": "rpc", "port": "web", "secret": "password"}],
    "permissions": {"internet": "outbound"},
}
WALLET_CONF = "{% if dependencies.other is defined %}{{ dependencies.other.rpc|json }}{% endif %}"


@pytest.mark.timeout(400)  # many addresses that must not answer, three apps
def test_dependant_reaches_what_is_exported_to_it_and_nobody_else_does(clean: Node) -> None:  # R-MF8, R-MF13
    cache = web_container(None, mounts=[], secrets=[], ports=[{"name": "inner", "container": 8080}])
    cache["health"] = {"tcp": {"port": "inner"}}
    both = {"web": web_container(18081), "cache": cache}
    drive(clean, "install", id="other", version="1.0.0", containers=both, manifest=CHAIN_EXPORTS)
    provider = f"archy-{slug('other')}"
    begun = prop(clean, "ExecMainStartTimestampMonotonic", f"{provider}-web.service")
    derived = {"template": "t", "dest": "wallet.conf", "into": {"web": "/run/conf"}, "mode": "0444"}
    needs = {"dependencies": [{"id": "other", "version": ">=1"}], "derived_files": [derived]}
    drive(clean, "install", version="1.0.0", manifest=needs, files={"t": WALLET_CONF})
    drive(clean, "install", id="third", version="1.0.0", port=18082, manifest={"dependencies": [{"id": "other"}]})
    assert prop(clean, "ExecMainStartTimestampMonotonic", f"{provider}-web.service") == begun
    conf = json.loads(sh(clean, f"podman exec {STEM}-web {BUSYBOX} cat /run/conf/wallet.conf"))
    assert conf == {"address": "rpc.other", "port": 8080, "secret": drive(clean, "secrets", id="other")["password"]}
    wget = f"podman exec {STEM}-web {BUSYBOX} wget -T 3 -qO-"
    assert sh(clean, f"{wget} http://rpc.other:8080/") == "other 1.0.0\n"
    inspect = "podman inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}'"
    closed = [f"http://{clean.address}:18082/", "http://192.0.2.1/", f"http://{provider}-cache:8080/"]
    for container in (f"{provider}-cache", f"archy-{slug('third')}-web"):
        closed += [f"http://{address}:8080/" for address in sh(clean, f"{inspect} {container}").split()]
    for target in closed:
        assert clean.run(["sh", "-c", f"{wget} {target}"], check=False).returncode != 0, f"{target} answered"
    problem = drive(clean, "uninstall", id="other", code=3)
    assert "can not do without other" in problem["text"]
    clean.run(["systemctl", "--user", "restart", f"{provider}-web.service"])
    clean.wait_until(["sh", "-c", f"{wget} http://rpc.other:8080/"], timeout=20)
    for id_ in ("hello", "third"):
        drive(clean, "purge", id=id_)
    assert sh(clean, "podman network ls -q --filter label=archy.link") == ""
    assert "archy-link" not in sh(clean, f"cat /home/op/.config/containers/systemd/{provider}-*.container")
    drive(clean, "purge", id="other")
    assert left_behind(clean) == ""


@pytest.mark.timeout(300)
def test_hooks_companion_and_automatic_port_in_one_app(clean: Node) -> None:  # R-MF4, R-FM1, R-ST9
    hooks = [
        {"copy_from_host": {"src": "assets/seed", "dest": "web:/data/seed"}},
        {"exec": {"in": "web", "argv": [BUSYBOX, "sh", "-c", f"{BUSYBOX} cat /data/seed >> /data/ran"]}},
    ]
    web = web_container(None, ports=[{"name": "web", "container": 8080, "host": "auto", "bind": "lan"}])
    door = {"id": "ui", "type": "ui", "port": "web"}
    more = {"hooks": {"post_install": hooks}, "interfaces": [door], "companions": {"ui": {"serves": "web"}}}
    order: dict[str, Any] = {"containers": {"web": web}, "manifest": more, "files": {"assets/seed": "a seed\n"}}
    status = drive(clean, "install", version="1.0.0", **order)
    assert status["urls"][0].startswith("http://127.0.0.1:20000/")
    assert page(clean, 20000) == "hello 1.0.0\n"
    ran = f"podman exec {STEM}-web {BUSYBOX} cat /data/ran"
    drive(clean, "install", version="1.1.0", **order)
    assert sh(clean, ran) == "a seed\n"
    assert sh(clean, f"podman exec {STEM}-web {BUSYBOX} stat -c %u /data/seed").strip() == "1000"
    sh(clean, f"rm -r {UNITS}/{STEM}-ui.container*")
    clean.run(["systemctl", "--user", "stop", f"{STEM}-ui.service"], check=False)
    drive(clean, "settle")
    assert prop(clean, "ActiveState", f"{STEM}-ui.service") == "active"
    assert page(clean, 20000) == "hello 1.1.0\n"
