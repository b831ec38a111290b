"""SnapshotShard: one snapshot of a replica at a time, which outlives the call that asked for it.

A large replica may take longer than any deadline. The work goes on when its caller is gone, and the same request
again waits for it, or gets its result; so a caller simply asks until it has an answer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from observability.logs import logger
from ostraka.v1 import shard_pb2
from services.runtime.clock import Clock
from services.runtime.config import Config
from services.runtime.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from services.shard.background import in_background
from services.shard.codecs import CodecStore
from services.shard.damage import DamagedRowError
from services.shard.hosted import HostedReplica, ReplicaPhase
from services.shard.object_store import BadDestinationError, ObjectStore, ObjectStoreError, open_store
from services.shard.snapshot import Subject, Taken, take
from services.shard.snapshot_format import is_name
from services.shard.store import StoreError
from services.shard.wire import set_to_wire

AT_ONCE = 1
"""Snapshots a node takes at the same time; each reads a whole database."""
RETRY_MS = 1_000
_PHASES = (ReplicaPhase.SERVING, ReplicaPhase.READ_ONLY)
_LOG = logger("shard")


@dataclass(frozen=True, slots=True)
class _Job:
    destination: str
    name: str
    task: asyncio.Task[shard_pb2.SnapshotShardResponse]


class Snapshots:
    """The snapshots of one node. Lives in one event loop."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._jobs: dict[str, _Job] = {}

    async def take(
        self, replica: HostedReplica | None, codecs: CodecStore | None, request: shard_pb2.SnapshotShardRequest
    ) -> shard_pb2.SnapshotShardResponse:
        """Take the snapshot, or join the one of that name under way.

        Raises InvalidArgument, FailedPrecondition (ask another replica), ResourceExhausted, Unavailable, DataLoss.
        """
        if not is_name(request.name):
            raise InvalidArgument(f"{request.name!r} is not 1 to 64 letters, digits, '.', '-', '_'", "name")
        try:
            store = await asyncio.to_thread(open_store, request.destination, self._config.snapshots.endpoint_url)
        except BadDestinationError as error:
            raise InvalidArgument(str(error), "destination") from error
        subject = self._subject(replica, codecs, request)
        key = subject.engine.replica_id
        job = self._jobs.get(key)
        if job is None or job.task.done():
            again = job is not None and (job.destination, job.name) == (request.destination, request.name)
            if job is None or not again or job.task.cancelled() or job.task.exception() is not None:
                task = asyncio.create_task(self._run(subject, request.name, store), name=f"snapshot {key[:8]}")
                task.add_done_callback(_seen)
                job = self._jobs[key] = _Job(request.destination, request.name, task)
        elif (job.destination, job.name) != (request.destination, request.name):
            message = f"snapshot {job.name!r} of replica {key[:8]} is under way; one at a time"
            raise ResourceExhausted(message, retry_ms=RETRY_MS)
        return await asyncio.shield(job.task)

    def _subject(
        self, replica: HostedReplica | None, codecs: CodecStore | None, request: shard_pb2.SnapshotShardRequest
    ) -> Subject:
        """Raises FailedPrecondition when the replica must not be copied."""
        if replica is None or replica.engine is None or replica.phase not in _PHASES:
            why = "it is not hosted here" if replica is None else replica.message() or replica.phase.value
            raise FailedPrecondition(
                f"shard {request.shard} of {request.collection!r} cannot be copied: {why}", "shard"
            )
        collection = self._config.collections[request.collection]
        return Subject(
            engine=replica.engine,
            codecs=codecs,
            collection=request.collection,
            shard=request.shard,
            epoch=replica.members.epoch,
            embedding_model=collection.embedding_model,
            embedding_revision=collection.embedding_revision,
        )

    async def _run(self, subject: Subject, name: str, store: ObjectStore) -> shard_pb2.SnapshotShardResponse:
        engine = subject.engine
        applied_before = engine.view.applied
        try:
            async with self._slots:
                _LOG.info("snapshot begins", replica=engine.replica_id, name=name)
                now_ms = self._clock.wall_ms()
                taken = await in_background("snapshot", lambda: take(subject, name, store, now_ms))
        except DamagedRowError as error:
            engine.note_damage(error.names)
            raise DataLoss(str(error)) from error
        except StoreError as error:
            engine.note_failure(error)
            raise Unavailable(str(error), retry_ms=RETRY_MS) from error
        except (ObjectStoreError, OSError) as error:
            raise Unavailable(str(error), retry_ms=RETRY_MS) from error
        assert taken.applied.issuperset(applied_before), "the copy is at least as new as the call"
        _LOG.info("snapshot taken", replica=engine.replica_id, name=name, bytes=taken.manifest.size)
        return _reply(taken)


def _seen(task: asyncio.Task[shard_pb2.SnapshotShardResponse]) -> None:
    """Its error has been seen even when every caller is gone."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.warning("snapshot failed", reason=str(error))


def _reply(taken: Taken) -> shard_pb2.SnapshotShardResponse:
    return shard_pb2.SnapshotShardResponse(
        replica=taken.manifest.replica,
        applied=set_to_wire(taken.applied),
        rows_live=taken.manifest.rows_live,
        files=len(taken.manifest.files),
        bytes=taken.manifest.size,
        manifest=taken.key,
        manifest_sha256=bytes.fromhex(taken.sha256),
    )
