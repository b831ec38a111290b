"""The mesh file that `ostraka up` writes when there is none, and what a mesh needs before its first start."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from services.runtime.config import Config, load
from services.runtime.tls import dev_certificates
from services.runtime.topology_file import bootstrap

NODES_DEFAULT = ("node-a", "node-b", "node-c")
PORTS_DEFAULT: Mapping[str, int] = {
    "embed": 7401,
    "router": 7402,
    "generator": 7403,
    "node-a": 7411,
    "node-b": 7412,
    "node-c": 7413,
}

_TEMPLATE = """\
# A mesh on one machine: {nodes} shard nodes, every process on 127.0.0.1.
# Every key and its meaning: services/runtime/config.py. OSTRAKA_<SECTION>_<KEY> overrides a key.

[mesh]
data_dir = "{data_dir}"

[embed]
addresses = ["127.0.0.1:{embed}"]

[router]
addresses = ["127.0.0.1:{router}"]

[generator]
addresses = ["127.0.0.1:{generator}"]
{node_tables}
[collections.docs]
shards = 2
replicas = 3
read_quorum = 2
write_quorum = 2
dim = 384
embedding_model = "all-MiniLM-L6-v2"
"""


def mesh_toml(data_dir: str = ".mesh", ports: Mapping[str, int] = PORTS_DEFAULT) -> str:
    """A mesh file: one embed, router and generator, and a shard node for every other name in `ports`."""
    nodes = [name for name in ports if name not in ("embed", "router", "generator")]
    tables = "".join(f'\n[nodes.{name}]\naddress = "127.0.0.1:{ports[name]}"\n' for name in nodes)
    return _TEMPLATE.format(
        data_dir=data_dir,
        nodes=len(nodes),
        node_tables=tables,
        embed=ports["embed"],
        router=ports["router"],
        generator=ports["generator"],
    )


def write_default(path: Path) -> bool:
    """Write the default mesh file unless `path` exists; whether it was written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(mesh_toml())
    except FileExistsError:
        return False
    return True


def prepare(path: Path | None) -> Config:
    """Load a mesh file and make what it lacks: certificates and topology. Raises ConfigError."""
    config = load(path)
    dev_certificates(config)
    bootstrap(config)
    return config


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """A port for each name that nothing listens on now; all are held until all are found, so they differ."""
    return dict(zip(names, _free(len(names)), strict=True))


def _free(count: int) -> Iterator[int]:
    with ExitStack() as stack:
        for _ in range(count):
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            yield taken.getsockname()[1]
