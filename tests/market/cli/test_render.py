"""`archy app render`: the units of an app, for people and for programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.builds import build_of, input_digest
from apps.machines import local_arch
from market.packing import pack_app
from tests.market.cli.archy import Archy

HELLO = str(Path(__file__).parents[3] / "apps" / "hello")
MARK = ("--publisher", "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK")


@pytest.fixture
def archy(tmp_path: Path) -> Archy:
    return Archy(tmp_path / "home")


def test_explained_units_are_the_units_with_a_comment_before_each_line(archy: Archy) -> None:
    plain, explained = (archy("app", "render", HELLO, *MARK, *more) for more in ((), ("--explain",)))
    assert (plain.code, explained.code) == (0, 0)
    kept = [line for line in explained.out.splitlines() if line in plain.out.splitlines()]
    assert kept == plain.out.splitlines()
    above = dict(zip(explained.out.splitlines()[1:], explained.out.splitlines(), strict=False))
    assert above["Pull=never"].startswith("# no registry is asked")
    assert above["StopTimeout=10"].startswith("# `stop_grace_secs`")


def test_explained_units_are_a_list_of_lines_for_programs(archy: Archy) -> None:
    answer = archy("app", "render", HELLO, *MARK, "--explain", "--json").json
    assert answer["schema"] == "archy/units/1"
    assert set(answer["lines"]) == set(answer["units"])
    assert all(line["why"] for lines in answer["lines"].values() for line in lines)
    assert "lines" not in archy("app", "render", HELLO, *MARK, "--json").json


BUILT = """
schema: 1
id: built
version: "1.0"
title: Built
containers:
  web:
    build: {context: pages/web}
"""


def test_the_unit_of_a_build_names_what_packing_will_name(archy: Archy, tmp_path: Path) -> None:  # R-MF12
    folder = tmp_path / "app"
    (folder / "pages" / "web").mkdir(parents=True)
    (folder / "manifest.yml").write_text(BUILT)
    (folder / "pages" / "web" / "Containerfile").write_text("FROM scratch\nCOPY page /\n")
    tags = []
    for page in ("one", "two"):
        (folder / "pages" / "web" / "page").write_text(page)
        units = archy("app", "render", str(folder), *MARK, "--json").json["units"]
        (build,) = (text for name, text in units.items() if name.endswith(".build"))
        packed = pack_app(folder, {}, tmp_path / page).manifest
        tags.append(input_digest(packed, build_of(packed.containers["web"]), local_arch()))
        assert f"Label=archy.build={tags[-1]}\n" in build
    assert tags[0] != tags[1]
    explained = archy("app", "render", str(folder / "manifest.yml"), *MARK, "--explain")
    assert "# no build reaches a network" in explained.out
