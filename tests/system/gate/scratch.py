"""Images of the gate's own apps, made from nothing but busybox: no registry, the same bytes each time.

archy-python -m tests.system.gate.scratch OUT      writes OUT/<app>/ (the folder) and OUT/<app>-<container>/ (layouts)
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from apps.machines import local_arch
from tests.market.layouts import config_of, write_layout
from tests.orchestrator.bundles import tar_of

BUSYBOX = Path("/bin/busybox")
APPS = Path(__file__).with_name("apps")

SERVE = """#!/bin/sh
# As the first process it has to listen to SIGTERM by itself.
b=/bin/busybox
$b httpd -f -p 8080 -h "$1" & child=$!
trap '$b kill $child; exit 0' TERM
wait $child
"""
COUNT = """b=/bin/busybox
n=$($b cat /data/starts 2>/dev/null || echo 0)
echo $((n + 1)) > /data/starts.new && $b mv /data/starts.new /data/starts
exec /bin/sh /serve /data
"""
IGNORE = """b=/bin/busybox
n=$($b cat /data/starts 2>/dev/null || echo 0)
echo $((n + 1)) > /data/starts.new && $b mv /data/starts.new /data/starts
trap '' TERM
exec $b httpd -f -p 8080 -h /www
"""
STATUS = """#!/bin/sh
b=/bin/busybox
counter=$({counter}) || counter=null
cache=$({cache}) || cache=gone
secret=$($b sha256sum < /run/secrets/password)
printf 'Content-Type: application/json\\r\\n\\r\\n'
printf '{{"counter": %s, "cache": "%s", "secret_sha256": "%s"}}\\n' "$counter" "$cache" "${{secret%% *}}"
"""
FETCH = "$b wget -T 3 -qO- http://{}"

FILES: dict[str, dict[str, dict[str, str]]] = {
    "stack": {
        "web": {
            "www/index.html": "the stack's page\n",
            "www/cgi-bin/status": STATUS.format(
                counter=FETCH.format("database:8080/starts"), cache=FETCH.format("cache:8080/")
            ),
        },
        "db": {"count": COUNT},
        "cache": {"www/index.html": "warm"},
    },
    "stubborn": {
        "web": {
            "ignore": IGNORE,
            "www/index.html": "the stubborn one's page\n",
            "www/cgi-bin/status": STATUS.format(counter="$b cat /data/starts", cache="echo none"),
        },
    },
}


def main(out: Path) -> None:
    busybox = BUSYBOX.read_bytes()
    shared = {"bin/busybox": busybox, "bin/sh": busybox, "serve": SERVE.encode()}
    for app, containers in FILES.items():
        shutil.copytree(APPS / app, out / app)
        for name, files in containers.items():
            layer = tar_of(shared | {path: text.encode() for path, text in files.items()}, executable=True)
            write_layout(out / f"{app}-{name}", [layer], config=config_of([layer], arch=local_arch()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
