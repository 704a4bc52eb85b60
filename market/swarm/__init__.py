"""Blobs named by BLAKE3: a crash-safe store, fetching from an origin and peers at once, and serving to others."""

from __future__ import annotations

from market.swarm.collecting import Collected, Stored
from market.swarm.errors import (
    AllSourcesFailed,
    BadAnswer,
    DamagedBlob,
    NotStored,
    PieceMismatch,
    PublisherInconsistent,
    SizeContradicted,
    SourceFault,
    StoreFull,
    StoreLocked,
    StoreUnusable,
)
from market.swarm.fetch import Fetcher, fetch_blob
from market.swarm.files import hash_file
from market.swarm.pieces import BadPieceList, PieceHasher, PieceTable
from market.swarm.report import FetchProgress, FetchReport, SourceReport
from market.swarm.serving import blob_routes
from market.swarm.sources import AddressPolicy, Source, SourceKind
from market.swarm.store import Store, open_store
from market.swarm.unlisted import UnlistedProgress, fetch_unlisted
from market.swarm.uplink import UploadLimits

__all__ = [
    "AddressPolicy",
    "AllSourcesFailed",
    "BadAnswer",
    "BadPieceList",
    "Collected",
    "DamagedBlob",
    "FetchProgress",
    "FetchReport",
    "Fetcher",
    "NotStored",
    "PieceHasher",
    "PieceMismatch",
    "PieceTable",
    "PublisherInconsistent",
    "SizeContradicted",
    "Source",
    "SourceFault",
    "SourceKind",
    "SourceReport",
    "Store",
    "StoreFull",
    "StoreLocked",
    "StoreUnusable",
    "Stored",
    "UnlistedProgress",
    "UploadLimits",
    "blob_routes",
    "fetch_blob",
    "fetch_unlisted",
    "hash_file",
    "open_store",
]
