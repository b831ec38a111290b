"""Which role may call which method. What is not listed is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from services.runtime.tls import Role

_EVERYONE = frozenset(Role)
_PACKAGE = "ostraka.v1"


def _methods(service: str, names: Iterable[str], *roles: Role) -> dict[str, frozenset[Role]]:
    return {f"/{service}/{name}": frozenset(roles) for name in names}


ALLOWED: Mapping[str, frozenset[Role]] = MappingProxyType(
    {
        **_methods(f"{_PACKAGE}.EmbedService", ("Embed", "DescribeModel"), Role.ROUTER, Role.ADMIN),
        **_methods(
            f"{_PACKAGE}.ShardService",
            ("Summary", "Write", "Search", "GetDocuments", "ListDocuments", "NodeStatus", "Cover", "FindKeys"),
            Role.ROUTER,
            Role.ADMIN,
        ),
        **_methods(
            f"{_PACKAGE}.ShardService", ("Pull", "Gossip", "GetCodec", "SampleVectors", "Statistics"), Role.SHARD
        ),
        **_methods(f"{_PACKAGE}.ShardService", ("SnapshotShard", "BucketLoads"), Role.ADMIN),
        # Not routers, which face clients: whoever fences stops a shard's quorums, and only who may write the topology
        # record can start them again.
        **_methods(f"{_PACKAGE}.ShardService", ("Fence", "CatchUp", "HostReplica"), Role.ADMIN),
        **_methods(
            f"{_PACKAGE}.RouterService",
            ("Ask", "Search", "Upsert", "Delete", "Get", "Status", "ListDocuments", "Export"),
            Role.CLIENT,
            Role.ADMIN,
        ),
        **_methods(f"{_PACKAGE}.GeneratorService", ("Generate",), Role.ROUTER, Role.ADMIN),
        **_methods("grpc.health.v1.Health", ("Check", "Watch", "List"), *_EVERYONE),
        **_methods("grpc.reflection.v1alpha.ServerReflection", ("ServerReflectionInfo",), Role.CLIENT, Role.ADMIN),
    }
)
"""Full method name, "/package.Service/Method", to the roles that may call it."""


def allowed(method: str, role: Role) -> bool:
    """Whether `role` may call `method`; an unlisted method is refused to everyone."""
    return role in ALLOWED.get(method, frozenset())
