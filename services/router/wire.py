"""The contract's messages and the quorum's values, each way side by side."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from ostraka.v1 import passage_pb2, shard_pb2
from services.quorum.clock import Version
from services.quorum.gtid import GtidSet
from services.quorum.replica import Summary
from services.quorum.status import ReplicaStatus
from services.runtime.errors import DataLoss

SETS_REMEMBERED_MAX = 256


def set_to_proto(gtids: GtidSet) -> passage_pb2.GtidSet:
    """An applied set as a message."""
    message = passage_pb2.GtidSet()
    for source, intervals in gtids.intervals().items():
        message.sources.add(source=source, bounds=[bound for interval in intervals for bound in interval])
    return message


def set_from_proto(message: passage_pb2.GtidSet) -> GtidSet:
    """Raises DataLoss for bounds that are not pairs in ascending order."""
    try:
        return GtidSet.from_intervals(
            {entry.source: tuple(_pairs(entry.bounds)) for entry in message.sources if entry.bounds}
        )
    except ValueError as error:
        raise DataLoss(f"a replica sent a malformed applied set: {error}") from None


def _pairs(bounds: Iterable[int]) -> Iterable[tuple[int, int]]:
    numbers = list(bounds)
    return zip(numbers[::2], numbers[1::2], strict=True)


class SetReader:
    """Reads applied sets, remembering the last ones: most replies carry a set that was just seen, and then the
    very same value is returned, which makes comparing free."""

    def __init__(self, remembered_max: int = SETS_REMEMBERED_MAX) -> None:
        self._known: OrderedDict[bytes, GtidSet] = OrderedDict()
        self._remembered_max = remembered_max

    def read(self, message: passage_pb2.GtidSet) -> GtidSet:
        """Raises DataLoss."""
        key = message.SerializeToString(deterministic=True)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = set_from_proto(message)
            if len(self._known) > self._remembered_max:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return found


def version_to_proto(version: Version) -> passage_pb2.Version:
    return passage_pb2.Version(hlc=version.hlc, source=version.source)


def summary_from_proto(message: shard_pb2.ReplicaSummary, reader: SetReader) -> Summary:
    """Raises DataLoss."""
    return Summary(
        replica_id=message.replica,
        status=status_from_proto(message.status),
        applied=reader.read(message.applied),
        hlc_max=message.hlc_max,
        epoch=message.epoch,
    )


def status_from_proto(status: shard_pb2.ReplicaStatus.ValueType) -> ReplicaStatus:
    """The quorum's name for a status; one that a newer replica invented reads as FAILED."""
    return _STATUSES.get(status, ReplicaStatus.FAILED)


_PREFIX = "REPLICA_STATUS_"
_STATUSES = {
    value.number: ReplicaStatus[value.name.removeprefix(_PREFIX)]
    for value in shard_pb2.ReplicaStatus.DESCRIPTOR.values
    if value.name.removeprefix(_PREFIX) in ReplicaStatus.__members__
}
