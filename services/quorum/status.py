"""What a replica answers. The numbers are those of `ostraka.v1.ReplicaStatus`; a test keeps them equal."""

from __future__ import annotations

from enum import Enum


class ReplicaStatus(Enum):
    """Anything but OK changed nothing on the replica."""

    OK = 1
    STALE_EPOCH = 2
    STALE_TOPOLOGY = 3
    TOO_OLD = 4
    CLOCK_SKEW = 5
    READ_ONLY = 6
    OVERLOADED = 7
    MISSING_DEPENDENCY = 8
    NOT_COVERED = 9
    UNKNOWN_REPLICA = 10
    INVALID = 11
    FAILED = 12
    TOO_STALE = 20


RETRYABLE = frozenset(
    {
        ReplicaStatus.OVERLOADED,
        ReplicaStatus.MISSING_DEPENDENCY,
        ReplicaStatus.READ_ONLY,
        ReplicaStatus.FAILED,
        ReplicaStatus.STALE_TOPOLOGY,
    }
)
"""Refusals that may turn into OK for the very same batch."""
