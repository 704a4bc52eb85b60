"""The lab by hand: python -m tests.system.lab build | boot | shell | run -- COMMAND | clean."""

from __future__ import annotations

import argparse
import signal
import sys

from apps.problems import Problem
from tests.system.lab.base import ensure_base, remove_stale_bases
from tests.system.lab.host import lab_home
from tests.system.lab.node import SOURCE, Node, sweep
from tests.system.lab.run_folder import live_folders


def main(arguments: list[str] | None = None) -> int:
    """Exit code of the command; 4 where this machine lacks what the lab needs."""
    options = _parser().parse_args(arguments)
    # So that a node is stopped here, as after Ctrl-C, and not only by its keeper.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        match options.what:
            case "build":
                base = ensure_base(_tell)
                print(base.rootfs)
                print(base.site)
                return 0
            case "clean":
                return _clean(current_too=options.all)
        return _with_node(options)
    except Problem as problem:
        print(f"lab: {problem}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        return 130


def _with_node(options: argparse.Namespace) -> int:
    with Node.boot(ensure_base(_tell), options.name) as node:
        match options.what:
            case "run":
                return node.shell(options.command, user=options.user)
            case "shell":
                _tell(
                    f"{node.name} is up at {node.address}; this project is in {SOURCE}; leaving the shell ends the node"
                )
                return node.shell(user=options.user)
        _tell(f"{node.name} is up at {node.address}; Ctrl-C ends it; a way in from another terminal:")
        print(f"nsenter --target {node.first} --all -- su - op", flush=True)
        signal.pause()
    return 0


def _clean(*, current_too: bool) -> int:
    for name in sweep():
        _tell(f"removed what {name} left behind")
    in_use = [folder.path.name for folder in live_folders(lab_home() / "runs")]
    if in_use:
        _tell(f"nodes are running ({', '.join(in_use)}), so the bases stay")
        return 1
    for path in remove_stale_bases(current_too=current_too):
        _tell(f"removed {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.system.lab", description=__doc__)
    whats = parser.add_subparsers(dest="what", required=True)
    whats.add_parser("build", help="build and cache the base; prints its two folders")
    clean = whats.add_parser("clean", help="remove what dead nodes left, and bases that this checkout does not use")
    clean.add_argument("--all", action="store_true", help="the current base too")
    for what, text in (
        ("boot", "boot a node and keep it until Ctrl-C"),
        ("shell", "boot a node and open a shell in it"),
        ("run", "boot a node, run a command in it, leave with its exit code"),
    ):
        sub = whats.add_parser(what, help=text)
        sub.add_argument("--name", default="node", help="its host name")
        sub.add_argument("--user", choices=("op", "root"), default="op")
        if what == "run":
            sub.add_argument("command", nargs="+", help="after --")
    return parser


def _tell(line: str) -> None:
    print(f"lab: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
