"""The codecs of one node: a store for each collection it hosts, the exchange with other nodes, and training."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from services.runtime.clock import Clock
from services.runtime.config import Config
from services.runtime.topology import Topology
from services.shard import faiss_index
from services.shard.codec_exchange import CodecExchange
from services.shard.codec_sources import CollectionSource, ShardSource, Stub
from services.shard.codec_training import CodecTraining, Subject
from services.shard.codecs import CodecStore, family
from services.shard.faiss_index import Kind
from services.shard.hosted import HostedReplica

CODECS_DIR = "codecs"
Replicas = Mapping[tuple[str, int], HostedReplica]


class NodeCodecs:
    """Opened before the replicas, which encode with what is here; started with them."""

    def __init__(self, config: Config, name: str, topology: Topology, clock: Clock) -> None:
        self._config = config
        self._name = name
        self._topology = topology
        self._clock = clock
        self.stores: dict[str, CodecStore] = {}
        self.exchange: CodecExchange | None = None
        self.training: CodecTraining | None = None

    def open(self) -> None:
        """Read what is on disk. Blocks. Raises OSError."""
        self.follow(self._topology)

    def follow(self, topology: Topology) -> None:
        """The members have changed: a store for a collection that is new here. Blocks. Raises OSError."""
        self._topology = topology
        directory = self._config.data_dir / "nodes" / self._name / CODECS_DIR
        for collection in sorted({collection for collection, _, _ in self._topology.replicas_of(self._name)}):
            settings = self._config.collections[collection]
            kind = Kind(settings.index)
            if kind is Kind.FLAT or collection in self.stores:
                continue  # nothing to train
            named = index_family(kind, settings.dim)
            self.stores[collection] = CodecStore(directory / collection, collection, named, settings.dim)

    def start(self, replicas: Replicas, stubs: Mapping[str, Stub]) -> list[asyncio.Task[None]]:
        """Begin to exchange and to train; the tasks to cancel at the end. `stubs`: by name, of the other nodes."""
        peers = self._peers(stubs)
        shard = self._config.shard
        exchange = CodecExchange(self.stores, peers, self._clock, shard.codec_exchange_ms / 1_000)
        training = CodecTraining(
            self._name,
            self._subjects(replicas, stubs),
            exchange.heard_s,
            self._clock,
            rows_min=shard.train_rows_min,
            silent_s=shard.codec_owner_silent_ms / 1_000,
            interval_s=shard.codec_exchange_ms / 1_000,
            trained=self._forget_unused(replicas),
        )
        self.exchange, self.training = exchange, training
        return [
            asyncio.create_task(exchange.run(), name="codec exchange"),
            asyncio.create_task(training.run(), name="codec training"),
        ]

    def restart(self, replicas: Replicas, stubs: Mapping[str, Stub]) -> None:
        """Ask and sample the members of the record that is followed now."""
        if self.exchange is not None and self.training is not None:
            self.exchange.follow(self._peers(stubs))
            self.training.follow(self._subjects(replicas, stubs))

    def _peers(self, stubs: Mapping[str, Stub]) -> dict[str, dict[str, Stub]]:
        return {
            collection: {node: stubs[node] for node in self._hosts(collection) if node in stubs}
            for collection in self.stores
        }

    def _hosts(self, collection: str) -> list[str]:
        """Nodes with a replica of the collection, in the mesh file's order."""
        shards = self._topology.collections[collection].shards.values()
        hosts = {member.node for record in shards for member in (*record.voters, *record.learners)}
        return [node for node in self._config.nodes if node in hosts]

    def _subjects(self, replicas: Replicas, stubs: Mapping[str, Stub]) -> list[Subject]:
        """Of the collections that this node hosts now: others train what it may still have a codec of."""
        return [
            self._subject(collection, replicas, stubs)
            for collection in self.stores
            if self._name in self._hosts(collection)
        ]

    def _subject(self, collection: str, replicas: Replicas, stubs: Mapping[str, Stub]) -> Subject:
        sources = []
        for shard, members in sorted(self._topology.collections[collection].shards.items()):
            others = {voter.node: stubs[voter.node] for voter in members.voters if voter.node in stubs}
            sources.append(ShardSource(shard, replicas.get((collection, shard)), others))
        source = CollectionSource(collection, self._config.collections[collection].dim, sources)
        kind = Kind(self._config.collections[collection].index)
        return Subject(source, self.stores[collection], self._hosts(collection), kind)

    def _forget_unused(self, replicas: Replicas) -> Callable[[str], None]:
        def forget(collection: str) -> None:
            views = [
                replica.engine.view
                for (name, _), replica in replicas.items()
                if name == collection and replica.engine is not None
            ]
            self.stores[collection].retain(part.segment.manifest.codec for view in views for part in view.parts)

        return forget


def index_family(kind: Kind, dim: int) -> str:
    """The family of factory strings that codecs of the kind have."""
    return family(faiss_index.factory_string(kind, dim, 1))
