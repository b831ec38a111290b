"""A vote has three outcomes; treating "not yet" as "no" is how quorums go wrong (etcd raft's quorum package)."""

from __future__ import annotations

from enum import Enum


class Vote(Enum):
    """PENDING may still become either of the others; those two are final."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def tally(*, voters: int, needed: int, yes: int, no: int) -> Vote:
    """The state of a vote in which `yes` and `no` of `voters` have spoken and `needed` must agree."""
    assert min(yes, no) >= 0
    assert yes + no <= voters
    assert 1 <= needed <= voters
    if yes >= needed:
        return Vote.WON
    if voters - no < needed:
        return Vote.LOST
    return Vote.PENDING
