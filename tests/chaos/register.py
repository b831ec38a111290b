"""What must be true of documents that are rewritten while nodes die: the model that the mesh is compared with.

Each document is written by one writer at a time with ascending revisions, so its state is one number. An
acknowledged revision may never be missing from a read that begins after the acknowledgement. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Register:
    """Revisions of every document: what was acknowledged, what was attempted."""

    acknowledged: dict[str, int] = field(default_factory=dict)
    attempted: dict[str, int] = field(default_factory=dict)

    def begin_write(self, document_id: str) -> int:
        """The next revision of a document, from 1."""
        revision = self.attempted.get(document_id, 0) + 1
        self.attempted[document_id] = revision
        return revision

    def acknowledge(self, document_id: str, revision: int) -> None:
        """The mesh said that this revision is durable and visible."""
        assert revision > self.acknowledged.get(document_id, 0), "a writer acknowledges its own revisions in order"
        self.acknowledged[document_id] = revision

    def floor(self, document_id: str) -> int:
        """The least revision that a read beginning now must show; 0: perhaps nothing."""
        return self.acknowledged.get(document_id, 0)

    def problem(self, document_id: str, floor: int, seen: int | None) -> str:
        """What is wrong with a read that began at `floor` and showed `seen`; empty when nothing is."""
        if seen is None:
            return f"{document_id}: revision {floor} was acknowledged, nothing was found" if floor else ""
        if seen < floor:
            return f"{document_id}: revision {floor} was acknowledged, {seen} was read"
        if seen > self.attempted.get(document_id, 0):
            return f"{document_id}: revision {seen} was read and never written"
        return ""
