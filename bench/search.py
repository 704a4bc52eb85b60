"""How long a search takes among 100,000 listings, and what filters and standing add.

    python -m bench.search [--listings 100000]

Prints a table and writes bench/out/search.json. Listings are written straight into the index's tables, for what is
measured is reading. A query is what a person types: common and rare words, prefixes, two words, filters, no words.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Final

from market.discovery import Index, Wanted, open_index
from market.discovery.searching import search

OUT: Final = Path(__file__).parent / "out" / "search.json"
NOW: Final = 1_800_000_000
PUBLISHERS: Final = 2000
ROUNDS: Final = 400
COMMON: Final = ("photo", "music", "home", "server", "notes", "backup", "media", "chat", "wiki", "money")
CATEGORIES: Final = ("media", "data", "network", "home-automation", "money", "social")


def word(dice: random.Random) -> str:
    return "".join(dice.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(dice.randint(4, 9)))


def fill(index: Index, listings: int, dice: random.Random) -> list[str]:
    """Titles, summaries and facets; words follow a skewed distribution. Returns some of the rarer words."""
    rare = [word(dice) for _ in range(20_000)]
    dids = [f"did:key:z6Mk{number:044}" for number in range(PUBLISHERS)]
    with index.writing() as (db, _):
        db.executemany("INSERT INTO publishers VALUES (?, ?)", list(enumerate(dids, 1)))
        for number in range(listings):
            texts = [dice.choice(COMMON), *(rare[int(len(rare) * dice.random() ** 3)] for _ in range(12))]
            title, summary = f"{texts[1].title()} {texts[0]}", " ".join(texts[2:])
            category, did, app = dice.choice(CATEGORIES), dids[number % PUBLISHERS], f"app{number}"
            row = db.execute(
                "INSERT INTO listing_rows (publisher, app, made, title, categories, archs, permissions)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (1 + number % PUBLISHERS, app, NOW + number, title, f" {category} ",
                 " amd64 arm64 " if number % 3 else " amd64 ", " internet " if number % 2 else ""),
            ).lastrowid  # fmt: skip
            db.execute(
                "INSERT INTO listing_text (rowid, title, summary, categories, publisher, app) VALUES (?,?,?,?,?,?)",
                (row, title, summary, category, did.removeprefix("did:key:"), app),
            )
    return rare


def queries(rare: list[str], dice: random.Random) -> list[Wanted]:
    standing = {f"did:key:z6Mk{dice.randrange(PUBLISHERS):044}": dice.random() * 3 for _ in range(150)}
    kinds = (
        lambda: Wanted(dice.choice(COMMON), standing=standing),
        lambda: Wanted(rare[int(len(rare) * dice.random() ** 2)], standing=standing),
        lambda: Wanted(dice.choice(rare)[:3], standing=standing),
        lambda: Wanted(dice.choice((*rare, *COMMON))[:2], standing=standing),
        lambda: Wanted(f"{dice.choice(COMMON)} {rare[dice.randrange(50)]}", standing=standing),
        lambda: Wanted(dice.choice(COMMON), category=dice.choice(CATEGORIES), arch="arm64", standing=standing),
        lambda: Wanted(without=("internet",), standing=standing),
        lambda: Wanted(category=dice.choice(CATEGORIES), standing=standing),
        lambda: Wanted(standing=standing),
    )
    return [kinds[number % len(kinds)]() for number in range(ROUNDS)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.search")
    parser.add_argument("--listings", type=int, default=100_000)
    given = parser.parse_args()
    dice = random.Random(1)
    with tempfile.TemporaryDirectory() as folder, open_index(Path(folder) / "market.db", now=lambda: NOW) as index:
        rare = fill(index, given.listings, dice)
        ranked, whole = [], []
        for wanted in queries(rare, dice):
            began = time.perf_counter()
            with index.reading() as db:
                search(db, wanted, 20)
            middle = time.perf_counter()
            index.search(wanted, 20)
            ranked.append(middle - began)
            whole.append(time.perf_counter() - middle)
    report(given.listings, sorted(ranked), sorted(whole))


def report(listings: int, ranked: list[float], whole: list[float]) -> None:
    rows: list[tuple[str, float, str, float | None]] = [("listings", float(listings), "", None)]
    for name, times, goal in (("ranking", ranked, None), ("a page of 20 listings", whole, 20.0)):
        rows.append((f"{name}, median", times[len(times) // 2] * 1000, "ms", None))
        rows.append((f"{name}, p95", times[int(len(times) * 0.95)] * 1000, "ms", goal))
    for name, value, unit, aim in rows:
        print(f"{name:32} {value:12,.2f} {unit:4} {'' if aim is None else f'goal {aim}'}")
    figures = [{"name": n, "value": v, "unit": u, "goal": g, "better": "lower"} for n, v, u, g in rows[1:]]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"figures": figures}, indent=1))


if __name__ == "__main__":
    main()
