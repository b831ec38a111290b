"""A bundle cut into messages is merged whole: no document shows before the batches that wrote it are covered."""

from __future__ import annotations

import pytest

from services.quorum.clock import Version
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import DocumentState, HeadRow, Op, PassageRow, PullBundle
from services.shard import pulling

VERSION = Version(5, 1)


def document(name: str) -> DocumentState:
    return DocumentState(HeadRow(name, 1, VERSION), (PassageRow(name, 0, VERSION, b"v" * 40, b"p" * 60),))


@pytest.mark.parametrize("message_bytes", [1, 150, 250, 10_000])
def test_pieces_join_to_the_bundle(message_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "MESSAGE_BYTES", message_bytes)
    names = tuple("abcde")
    op = Op(Gtid(1, 1), VERSION, names)
    staged = (PassageRow("z", 0, Version(9, 1), b"v", b"p"),)
    bundle = PullBundle(GtidSet.of(op.gtid), tuple(document(name) for name in names), staged, (op,), 9)
    parts = list(pulling.pieces(bundle))
    assert [bool(part.covers) for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (len(parts) > 1) == (message_bytes < 500)
    assert pulling.join(parts) == bundle
