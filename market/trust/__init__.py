"""Trust: who counts for this operator, what they say, and why. Pure but for the anchor book.

`judge` gives one verdict; `Circle` is a snapshot that gives many. docs/trust.md explains the score in one page.
"""

from market.trust.anchors import Anchor, AnchorBook, Anchors, DamagedAnchors, NotAPerson, UnknownAnchor, person_id
from market.trust.circle import Circle
from market.trust.factors import NEUTRAL, TERMS, Contributor, Factor, FactorKey
from market.trust.gates import Gate, GateKind, GateState, Permissions
from market.trust.graph import TrustGraph
from market.trust.memory import DamagedMemory, KnownSigner, Ran, Remembered, TrustMemory
from market.trust.policy import Policy, is_powerful
from market.trust.rank import pagerank, personalized_pagerank
from market.trust.signer import Continuity, Signer, compare
from market.trust.verdict import Ask, Outcome, Verdict, judge, judge_in

__all__ = [
    "NEUTRAL",
    "TERMS",
    "Anchor",
    "AnchorBook",
    "Anchors",
    "Ask",
    "Circle",
    "Continuity",
    "Contributor",
    "DamagedAnchors",
    "DamagedMemory",
    "Factor",
    "FactorKey",
    "Gate",
    "GateKind",
    "GateState",
    "KnownSigner",
    "NotAPerson",
    "Outcome",
    "Permissions",
    "Policy",
    "Ran",
    "Remembered",
    "Signer",
    "TrustGraph",
    "TrustMemory",
    "UnknownAnchor",
    "Verdict",
    "compare",
    "is_powerful",
    "judge",
    "judge_in",
    "pagerank",
    "person_id",
    "personalized_pagerank",
]
