"""The levels of the contract: which a request may name, and what an acknowledgement at each says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ostraka.v1 import passage_pb2
from services.quorum.members import Members
from services.runtime.errors import InvalidArgument

Level = passage_pb2.ConsistencyLevel
WriteLevel = passage_pb2.WriteLevel

ONE = passage_pb2.CONSISTENCY_LEVEL_ONE
SESSION = passage_pb2.CONSISTENCY_LEVEL_SESSION
QUORUM = passage_pb2.CONSISTENCY_LEVEL_QUORUM
BOUNDED = passage_pb2.CONSISTENCY_LEVEL_BOUNDED
LINEARIZABLE = passage_pb2.CONSISTENCY_LEVEL_LINEARIZABLE
WRITE_ONE = passage_pb2.WRITE_LEVEL_ONE
WRITE_QUORUM = passage_pb2.WRITE_LEVEL_QUORUM
WRITE_ALL = passage_pb2.WRITE_LEVEL_ALL

# A longer bound promises nothing that ONE does not, and would overflow clocks on the way.
STALENESS_MS_MAX = 24 * 3_600_000


def read_level(given: Level.ValueType, max_staleness_ms: int, *, by_id: bool = False) -> Level.ValueType:
    """The level of a read, QUORUM when nothing is said; `by_id`: LINEARIZABLE is possible. Raises InvalidArgument."""
    level = given or QUORUM
    if level not in (ONE, SESSION, QUORUM, BOUNDED, LINEARIZABLE):
        raise InvalidArgument(
            f"{level} is not a level; use ONE, SESSION, BOUNDED, QUORUM or (Get only) LINEARIZABLE", "consistency"
        )
    if level == LINEARIZABLE and not by_id:
        raise InvalidArgument(
            "LINEARIZABLE is for Get, which reads documents by id; a search is as strong as it can be at QUORUM, "
            "and what it found can be read again by Get at LINEARIZABLE",
            "consistency",
        )
    if level == BOUNDED:
        if not 1 <= max_staleness_ms <= STALENESS_MS_MAX:
            raise InvalidArgument(
                f"is {max_staleness_ms}; level BOUNDED needs 1 to {STALENESS_MS_MAX} ms", "max_staleness_ms"
            )
    elif max_staleness_ms:
        raise InvalidArgument(f"has no meaning at level {_name(level)}; use it with BOUNDED", "max_staleness_ms")
    return level


def write_level(given: WriteLevel.ValueType) -> WriteLevel.ValueType:
    """The level of a write, QUORUM when nothing is said. Raises InvalidArgument."""
    level = given or WRITE_QUORUM
    if level not in (WRITE_ONE, WRITE_QUORUM, WRITE_ALL):
        raise InvalidArgument(f"{level} is not a level; use ONE, QUORUM or ALL", "level")
    return level


def members_at(members: Members, level: WriteLevel.ValueType) -> Members:
    """The same voters, with as many acknowledgements as the level asks for."""
    if level == WRITE_ONE:
        return replace(members, write_quorum=1)
    return replace(members, write_quorum=len(members.voters)) if level == WRITE_ALL else members


def meaning(level: WriteLevel.ValueType, shards: Mapping[int, Members], *, weak: bool) -> str:
    """What ACKNOWLEDGED says at a level, in words."""
    if level == WRITE_ONE:
        return (
            "durable on one voter: a read at QUORUM may miss it until it has spread, and losing that voter's disk "
            "before then loses it"
        )
    if level == WRITE_ALL:
        return "durable and visible on every voter"
    written = max(members.write_quorum for members in shards.values())
    if weak:
        return f"durable on {written} voters; WEAK: R + W <= N, so a later read at QUORUM may miss it"
    return f"durable on {written} voters and visible to every later read at QUORUM"


def _name(level: Level.ValueType) -> str:
    return Level.Name(level).removeprefix("CONSISTENCY_LEVEL_")
