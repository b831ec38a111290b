"""What the mesh looks like from here: every node, every service, every collection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import version

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ostraka.v1 import passage_pb2, router_pb2, shard_pb2
from services.router.catalogue import Catalogue, Collection
from services.router.embedder import Embedder
from services.router.node_links import NodeLink, NodeLinks
from services.runtime.channel import ChannelPool
from services.runtime.deadline import Deadline
from services.runtime.errors import from_rpc_error

# One peer that does not answer must not hold up the picture of the others.
PROBE_MS = 1_000


class Status:
    """Answers Status calls."""

    def __init__(
        self, catalogue: Catalogue, links: NodeLinks, services: Sequence[tuple[str, ChannelPool]], embedder: Embedder
    ) -> None:
        """`services`: name and channels of each service other than the shard nodes."""
        self._catalogue, self._links, self._services, self._embedder = catalogue, links, services, embedder
        self._version = version("ostraka")

    async def status(self, deadline: Deadline) -> router_pb2.StatusResponse:
        """The whole picture; what cannot be reached is in it, with the reason."""
        timeout_s = deadline.at_most_ms(PROBE_MS).remaining_s()
        probes = [
            (name, address, channel)
            for name, pool in self._services
            for address, channel in zip(pool.addresses, pool.channels, strict=True)
        ]
        nodes, services = await asyncio.gather(
            asyncio.gather(*(_node(link, timeout_s) for link in self._links)),
            asyncio.gather(*(_service(*probe, timeout_s) for probe in probes)),
        )
        return router_pb2.StatusResponse(
            nodes=nodes,
            services=services,
            collections=[self._collection(collection) for collection in self._catalogue],
            version=self._version,
        )

    def _collection(self, collection: Collection) -> router_pb2.CollectionView:
        model = self._embedder.model_of(collection)
        members = collection.members[collection.shards[0]]
        return router_pb2.CollectionView(
            collection=collection.name,
            shards=len(collection.shards),
            replicas=len(members.voters),
            read_quorum=members.read_quorum,
            write_quorum=members.write_quorum,
            embedding_model=passage_pb2.EmbeddingModel(id=model.id, revision=model.revision),
            dim=collection.dim,
        )


async def _node(link: NodeLink, timeout_s: float) -> router_pb2.NodeView:
    try:
        status = await link.stub.NodeStatus(shard_pb2.NodeStatusRequest(), timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        return router_pb2.NodeView(node=link.name, address=link.address, error=from_rpc_error(error).message)
    return router_pb2.NodeView(node=link.name, address=link.address, reachable=True, status=status)


async def _service(name: str, address: str, channel: grpc.aio.Channel, timeout_s: float) -> router_pb2.ServiceView:
    try:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        return router_pb2.ServiceView(service=name, address=address, error=from_rpc_error(error).message)
    serving = reply.status == health_pb2.HealthCheckResponse.SERVING
    return router_pb2.ServiceView(
        service=name, address=address, serving=serving, error="" if serving else "not serving"
    )
