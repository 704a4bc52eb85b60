"""The crowd's size against the score: this project's and plain averaging, as JSON and as a picture.

    python -m bench.sybils [--picture docs/sybils.png]

One honest anchor pans the app; K fakes behind one attack edge praise it. Runs on a generated graph and, where the data
is at hand, on Bitcoin-OTC. Writes bench/out/sybils.json and the picture.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

from market.trust import Outcome, judge
from tests.market.trust.crowds import Honest, bitcoin_otc, generated, praise, star
from tests.market.trust.people import NOW, listing, vote
from tests.market.trust.test_rank import VECTORS

OUT: Final = Path(__file__).parent / "out" / "sybils.json"
PICTURE: Final = Path(__file__).parents[1] / "docs" / "sybils.png"
CROWDS: Final = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


def friends_of_anchors(honest: Honest) -> list[int]:
    """Whom the anchors follow, from who follows fewest to who follows most: the fewer, the more one edge carries."""
    degree = Counter(person for person, _ in honest.follows)
    followed = {b for a, b in honest.follows if a in honest.anchors and b not in honest.anchors}
    return sorted(followed, key=lambda person: (degree[person], person))


def series(honest: Honest, victim: int) -> dict[str, Any]:
    panned = vote(honest.names[honest.anchors[0]], value=-100)
    ours, average, outcomes = [], [], []
    for crowd in (0, *CROWDS):
        votes = [panned, *praise(crowd)]
        edges = star(honest, crowd, [victim]) if crowd else ()
        verdict = judge(listing(), honest.evidence(crowd, edges, votes), honest.trusted, now=NOW)
        ours.append(verdict.points)
        average.append(round(sum(word.value + 100 for word in votes) / (2 * len(votes)), 2))
        outcomes.append(verdict.outcome is Outcome.ALLOW)
    return {"crowd": [0, *CROWDS], "score": ours, "average": average, "installs_unasked": outcomes}


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.2), dpi=120)
    for place, (name, row) in enumerate(found.items()):
        axes.plot(row["crowd"], row["score"], "osD"[place], ls="-", color="#0a7", alpha=1 - 0.3 * place, ms=4,
                  label=f"this score; {name}")  # fmt: skip
    row = next(iter(found.values()))
    axes.plot(row["crowd"], row["average"], "^--", color="#c33", label="plain averaging of all votes")
    axes.axhline(62, color="#888", lw=0.8)
    axes.text(0, 63.5, "installs without a question", color="#666", fontsize=8)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, 130_000)
    axes.set_ylim(-38, 104)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("fakes that praise the app, all behind one attack edge")
    axes.set_ylabel("points of 100")
    axes.set_title("An app that an anchor panned, and a crowd that praises it", fontsize=11)
    axes.legend(loc="lower right", fontsize=7.5, framealpha=1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--picture", type=Path, default=PICTURE)
    asked = options.parse_args()
    plain = generated()
    found = {"generated graph": series(plain, friends_of_anchors(plain)[0])}
    otc = VECTORS / "trust" / "bitcoin-otc.csv"
    if otc.exists():
        real = bitcoin_otc(otc)
        friends = friends_of_anchors(real)
        found["Bitcoin-OTC, an anchor's typical friend is fooled"] = series(real, friends[len(friends) // 2])
        found["Bitcoin-OTC, one who follows nobody else is fooled"] = series(real, friends[0])
    for name, row in found.items():
        print(name)
        for crowd, score, average in zip(row["crowd"], row["score"], row["average"], strict=True):
            print(f"  {crowd:>7} fakes: {score:>3} points; averaging {average:>6}")
    moved = [
        {"name": f"{name}: 100,000 fakes against one", "value": abs(row["score"][-1] - row["score"][1]),
         "unit": "points", "goal": 5, "better": "lower"}
        for name, row in found.items()
    ]  # fmt: skip
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"figures": moved, "series": found}, indent=1) + "\n")
    asked.picture.with_suffix(".json").write_text(json.dumps(found) + "\n")
    draw(found, asked.picture)


if __name__ == "__main__":
    main()
