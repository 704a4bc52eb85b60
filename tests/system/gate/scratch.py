"""Images of the gate's own apps, made from nothing but busybox: no registry, the same bytes each time.

archy-python -m tests.system.gate.scratch OUT      writes OUT/<app>/ (the folder) and OUT/<app>-<container>/ (layouts);
                                                   a container with a folder context/<container> is left to the node
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
conf=/run/conf/httpd.conf
[ -e $conf ] || conf=/dev/null
$b httpd -f -p 8080 -c $conf -h "${1:-/www}" & child=$!
trap '$b kill $child; exit 0' TERM
wait $child
"""
STARTS = """b=/bin/busybox
n=$($b cat /data/starts 2>/dev/null || echo 0)
echo $((n + 1)) > /data/starts.new && $b mv /data/starts.new /data/starts
echo "start $((n + 1))"
"""
COUNT = STARTS + 'exec /bin/sh /serve "$1"\n'
IGNORE = STARTS + "trap '' TERM\nexec $b httpd -f -p 8080 -h /www\n"
STATUS = """#!/bin/sh
b=/bin/busybox
{before}
counter=$({counter}) || counter=null
beside=$({beside}) || beside=gone
secret=$($b sha256sum < /run/secrets/password)
printf 'Content-Type: application/json\\r\\n\\r\\n'
printf '{{"counter": %s, "beside": "%s", "secret_sha256": "%s"}}\\n' "$counter" "$beside" "${{secret%% *}}"
"""
FORWARD = """#!/bin/sh
printf 'Content-Type: application/json\\r\\n\\r\\n'
exec /bin/busybox wget -T 5 -qO- "http://$UPSTREAM/cgi-bin/status"
"""
FETCH = "$b wget -T 3 -qO- http://{}"
OWN = "$b cat /data/starts"


def status(counter: str = OWN, beside: str = "echo", before: str = "") -> str:
    """The page that tells how often the app started, what it reads of what stands beside it, and of its secret."""
    return STATUS.format(counter=counter, beside=beside, before=before)


FILES: dict[str, dict[str, dict[str, str]]] = {
    "stack": {
        "web": {
            "www/index.html": "the stack's page\n",
            "www/cgi-bin/status": status(FETCH.format("database:8080/starts"), FETCH.format("cache:8080/")),
        },
        "db": {"count": COUNT},
        "cache": {"www/index.html": "warm"},
    },
    "stubborn": {
        "web": {
            "ignore": IGNORE,
            "www/index.html": "the stubborn one's page\n",
            "www/cgi-bin/status": status(),
        },
    },
    "chain": {
        "web": {
            "count": COUNT,
            "www/index.html": "the chain's page\n",
            "www/rpc/tip": "block 7",
            "www/cgi-bin/status": status(),
        },
    },
    "wallet": {
        "web": {
            "count": COUNT,
            "www/index.html": "the wallet's page\n",
            "www/cgi-bin/status": status(
                before=". /run/conf/chain.env", beside=FETCH.format('friend:"$password"@"$door"/rpc/tip')
            ),
        },
    },
    "notes": {
        "server": {"count": COUNT, "www/cgi-bin/status": status()},
        "ui": {"www/index.html": "the notes' page\n", "www/cgi-bin/status": FORWARD},
    },
}


def main(out: Path) -> None:
    busybox = BUSYBOX.read_bytes()
    shared = {"bin/busybox": busybox, "bin/sh": busybox, "serve": SERVE.encode()}
    for app, containers in FILES.items():
        shutil.copytree(APPS / app, out / app)
        for name, files in containers.items():
            if (context := out / app / "context" / name).is_dir():
                contents = {"busybox": busybox, "serve": SERVE.encode()} | {p: t.encode() for p, t in files.items()}
                for path, content in contents.items():
                    (context / path).parent.mkdir(parents=True, exist_ok=True)
                    (context / path).write_bytes(content)
                continue
            layer = tar_of(shared | {path: text.encode() for path, text in files.items()}, executable=True)
            config = config_of([layer], arch=local_arch())
            config["config"]["Cmd"] = ["/bin/sh", "/serve"]  # what a companion runs, which has no command of its own
            write_layout(out / f"{app}-{name}", [layer], config=config)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
