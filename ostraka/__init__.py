"""Ostraka: a retrieval-augmented generation mesh whose every answer can be checked.

    from ostraka import Client

    async with Client(["127.0.0.1:7402"], certs=".mesh/certs") as client:
        answer = await client.answer("What does the with statement do?")

Names are loaded when first used: the services import `ostraka.v1` and need none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ostraka.answers import Answer, AskEvent, Citation, Delta, Retrieved
    from ostraka.client import Client, ClientOptions
    from ostraka.credentials import Credentials
    from ostraka.documents import NewDocument, NewPassage
    from ostraka.errors import OstrakaError
    from ostraka.filters import Filter, where
    from ostraka.listings import DocumentPage, DocumentSummary, ExportedDocument
    from ostraka.mesh_status import MeshStatus
    from ostraka.results import (
        Consistency,
        DocumentWrite,
        GetResult,
        Hit,
        Outcome,
        Passage,
        Provenance,
        SearchResult,
        ShardCoverage,
        Version,
        WriteLevel,
        WriteResult,
    )
    from ostraka.retry import RetryPolicy
    from ostraka.search_modes import Fusion, SearchMode

__all__ = [
    "Answer",
    "AskEvent",
    "Citation",
    "Client",
    "ClientOptions",
    "Consistency",
    "Credentials",
    "Delta",
    "DocumentPage",
    "DocumentSummary",
    "DocumentWrite",
    "ExportedDocument",
    "Filter",
    "Fusion",
    "GetResult",
    "Hit",
    "MeshStatus",
    "NewDocument",
    "NewPassage",
    "OstrakaError",
    "Outcome",
    "Passage",
    "Provenance",
    "Retrieved",
    "RetryPolicy",
    "SearchMode",
    "SearchResult",
    "ShardCoverage",
    "Version",
    "WriteLevel",
    "WriteResult",
    "where",
]

_HOMES = {
    "ostraka.answers": ("Answer", "AskEvent", "Citation", "Delta", "Retrieved"),
    "ostraka.client": ("Client", "ClientOptions"),
    "ostraka.credentials": ("Credentials",),
    "ostraka.documents": ("NewDocument", "NewPassage"),
    "ostraka.errors": ("OstrakaError",),
    "ostraka.filters": ("Filter", "where"),
    "ostraka.listings": ("DocumentPage", "DocumentSummary", "ExportedDocument"),
    "ostraka.mesh_status": ("MeshStatus",),
    "ostraka.results": (
        "Consistency",
        "DocumentWrite",
        "GetResult",
        "Hit",
        "Outcome",
        "Passage",
        "Provenance",
        "SearchResult",
        "ShardCoverage",
        "Version",
        "WriteLevel",
        "WriteResult",
    ),
    "ostraka.retry": ("RetryPolicy",),
    "ostraka.search_modes": ("Fusion", "SearchMode"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'ostraka' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value
