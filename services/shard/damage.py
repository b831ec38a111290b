"""Rows that fail their checksum: not served, reported, and fetched anew from a peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.quorum.clock import Version


@dataclass(frozen=True, slots=True)
class RowName:
    """Which row: a passage, or with `ordinal` -1 the head of a document."""

    document_id: str
    ordinal: int
    version: Version

    def __str__(self) -> str:
        return f"{self.document_id}#{self.ordinal}" if self.ordinal >= 0 else f"the head of {self.document_id}"


class DamagedRowError(Exception):
    """Some rows fail their checksum."""

    def __init__(self, names: Sequence[RowName]) -> None:
        self.names = tuple(names)
        super().__init__(f"{len(self.names)} rows fail their checksum, first {self.names[0]}")
