"""The hello app's image: the same bytes everywhere, a real server without any privilege, data that stays."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pytest

from apps.manifest import Manifest, parse_manifest_yaml
from tests.system.lab import PROJECT, SOURCE, CommandFailed, Node

MIB = 1 << 20
VERSIONS = ("1.0.0", "1.1.0")
DEADLINE = 20.0
SECRET = "a secret of this test"

QUADLET = """
[Container]
ContainerName=hello
Image=localhost/hello:1.0.0
Pull=never
ReadOnly=true
DropCapability=all
NoNewPrivileges=true
PublishPort=18080:8080
Volume=hello.volume:/data
Secret=hello-token,type=mount,target=/run/secrets/token,mode=0400,uid=65532,gid=65532
StopTimeout=10

[Service]
TimeoutStopSec=25
"""


@dataclass(frozen=True)
class Layout:
    """An OCI image layout in the node, and what its manifest says."""

    path: str
    manifest: dict[str, Any]

    @property
    def layers(self) -> list[str]:
        return [layer["digest"] for layer in self.manifest["layers"]]


def build(node: Node, version: str, out: str) -> Layout:
    node.run(["sh", f"{SOURCE}/apps/hello/build.sh", version, out], timeout=100)
    index = json.loads(node.read(f"{out}/index.json"))
    digest = index["manifests"][0]["digest"].removeprefix("sha256:")
    return Layout(out, json.loads(node.read(f"{out}/blobs/sha256/{digest}")))


@pytest.fixture(scope="module")
def layouts(node: Node) -> dict[str, Layout]:
    return {version: build(node, version, f"/home/op/hello-{version}") for version in VERSIONS}


@pytest.fixture
def manifest() -> Manifest:
    path = PROJECT / "apps" / "hello" / "manifest.yml"
    return parse_manifest_yaml(path.read_bytes(), where=str(path))


def test_manifest_is_valid_and_asks_for_no_privilege(manifest: Manifest) -> None:
    web = manifest.containers["web"]
    assert web.security.read_only
    assert web.security.capabilities == ()
    assert web.secrets[0].env is None
    assert manifest.permissions.internet == "none"


def test_new_version_changes_only_the_last_small_layer(layouts: dict[str, Layout]) -> None:
    old, new = (layouts[version] for version in VERSIONS)
    assert old.layers[:-1] == new.layers[:-1]
    assert old.layers[-1] != new.layers[-1]
    assert new.manifest["layers"][-1]["size"] < MIB // 16
    assert max(layer["size"] for layer in old.manifest["layers"]) >= 64 * MIB


def test_layers_are_plain_tar_which_the_store_returns_byte_for_byte(layouts: dict[str, Layout]) -> None:
    for layout in layouts.values():
        kinds = {layer["mediaType"] for layer in layout.manifest["layers"]}
        assert kinds == {"application/vnd.oci.image.layer.v1.tar"}


def test_same_version_built_again_is_the_same_image_byte_for_byte(node: Node, layouts: dict[str, Layout]) -> None:
    node.run(["cp", "-r", f"{SOURCE}/apps/hello", "/home/op/elsewhere"])
    node.run(["chmod", "-R", "go-rwx", "/home/op/elsewhere"])
    node.run(["sh", "-c", "umask 077; exec sh /home/op/elsewhere/build.sh 1.0.0 /home/op/again"], timeout=100)
    node.run(["diff", "-r", "/home/op/again", layouts["1.0.0"].path])


def test_build_leaves_nothing_in_the_users_image_store_or_temporary_folder(
    node: Node, layouts: dict[str, Layout]
) -> None:
    assert layouts
    assert "localhost/hello" not in node.run(["podman", "images", "--format", "{{.Repository}}:{{.Tag}}"]).stdout
    assert "hello-build" not in node.run(["ls", "/var/tmp"]).stdout


def test_build_refuses_to_write_over_a_folder(node: Node, layouts: dict[str, Layout]) -> None:
    with pytest.raises(CommandFailed, match="exists") as caught:
        build(node, "1.0.0", layouts["1.0.0"].path)
    assert caught.value.returncode == 2


def test_unit_without_privileges_serves_counts_its_starts_keeps_its_secret_and_stops_in_its_grace(
    node: Node, layouts: dict[str, Layout]
) -> None:
    node.run(["podman", "pull", "--quiet", f"oci:{layouts['1.0.0'].path}:localhost/hello:1.0.0"])
    node.run(["podman", "secret", "create", "hello-token", "-"], input=SECRET)
    node.write("/home/op/.config/containers/systemd/hello.container", QUADLET.encode())
    node.write("/home/op/.config/containers/systemd/hello.volume", b"[Volume]\nUser=65532\nGroup=65532\n")
    node.run(["systemctl", "--user", "daemon-reload"])

    seen = []
    for _ in range(2):
        node.run(["systemctl", "--user", "start", "hello.service"])
        said = node.wait_until(["curl", "-fsS", f"http://{node.address}:18080/cgi-bin/status"], DEADLINE)
        seen.append(json.loads(said))
        page = node.run(["curl", "-fsS", f"http://{node.address}:18080/"]).stdout
        assert "<strong>1.0.0</strong>" in page
        node.run(["systemctl", "--user", "stop", "hello.service"], timeout=9)
        # Killed after the grace, it would have failed with 137.
        assert node.run(["systemctl", "--user", "show", "-P", "Result", "hello.service"]).stdout.strip() == "success"
    assert [status["counter"] for status in seen] == [1, 2]
    assert {status["version"] for status in seen} == {"1.0.0"}
    # The file was readable by the container's ordinary user, and had the same bytes both times.
    assert {status["secret_sha256"] for status in seen} == {hashlib.sha256(SECRET.encode()).hexdigest()}
