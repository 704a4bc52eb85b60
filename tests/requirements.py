"""`./run requirements [ID ...]`: which tests show which requirement.

A test shows a requirement by naming its id in a comment between its first and last line (`# R-ST2`). Without ids on the
command line, those of requirements.txt beside this file are looked for: the ones this project claims. Exit code 1 when
one has no test. Reads the tests' source only; whether they pass is pytest's to say.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TESTS = Path(__file__).parent
CLAIMED = Path(__file__).with_suffix(".txt")
_ID = re.compile(r"\bR-[A-Z]{2}[0-9]+\b")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print id -> tests; 1 when a wanted id has none, 2 for a word that is no id."""
    parser = argparse.ArgumentParser(prog="./run requirements", description="Which tests show which requirement.")
    parser.add_argument("ids", nargs="*", metavar="ID")
    parser.add_argument("--tests", type=Path, default=TESTS, help="the folder that is read")
    options = parser.parse_args(arguments)
    wanted = options.ids or claimed(CLAIMED.read_text())
    if bad := [word for word in wanted if not _ID.fullmatch(word)]:
        print(f"requirements: not an id: {', '.join(bad)}", file=sys.stderr)
        return 2
    found = shown(options.tests)
    for id_ in sorted(wanted, key=_order):
        tests = found.get(id_, ())
        print(f"{id_:8} {len(tests):3}  {tests[0] if tests else '-- no test names it'}")
        for test in tests[1:]:
            print(f"{'':13} {test}")
    gaps = [id_ for id_ in wanted if id_ not in found]
    if unclaimed := sorted(set(found) - set(wanted), key=_order):
        print(f"also named: {' '.join(unclaimed)}")
    print(f"{len(wanted) - len(gaps)} of {len(wanted)} are shown" + (f"; gaps: {' '.join(gaps)}" if gaps else ""))
    return 1 if gaps else 0


def claimed(text: str) -> list[str]:
    """The ids of a list: words, `#` begins a comment."""
    return [word for line in text.splitlines() for word in line.split("#")[0].split()]


def shown(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """Id -> `file::test` of every test that names it, in the order of files and lines."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        source = path.read_text()
        comments = list(_comments(source))
        for name, first, last in _tests(ast.parse(source, str(path))):
            named = (id_ for line, text in comments if first <= line <= last for id_ in _ID.findall(text))
            for id_ in dict.fromkeys(named):
                found.setdefault(id_, []).append(f"{path.relative_to(folder)}::{name}")
    return {id_: tuple(tests) for id_, tests in found.items()}


def _comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _tests(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """Name, first and last line; also of tests in classes, and of methods that hypothesis plays (rules, invariants)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_test(node):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield node.name, first, node.end_lineno or node.lineno


def _is_test(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    played = any("rule" in ast.dump(d) or "invariant" in ast.dump(d) for d in node.decorator_list)
    return node.name.startswith("test_") or played


def _order(id_: str) -> tuple[str, int]:
    return id_[:4], int(id_[4:])


if __name__ == "__main__":
    sys.exit(main())
