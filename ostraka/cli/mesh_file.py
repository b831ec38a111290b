"""The mesh file that `ostraka up` writes when there is none, and what a mesh needs before its first start."""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from services.runtime.config import Config, ConfigError, load
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

# What `--where` may name, beside source and document_id: text, integer, number or flag.
# [collections.docs.metadata]
# year = "integer"
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


PORTS = range(20_000, 32_000)
"""Below the range from which Linux takes the local ports of outgoing connections: a port from up there can be taken
by a caller's reconnect attempt while its server is down, and the server then cannot come back."""


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """A port for each name that nothing listens on now; all are held until all are found, so they differ.

    Raises ConfigError when there are none.
    """
    with ExitStack() as stack:
        return {name: _free(stack) for name in names}


def _free(stack: ExitStack) -> int:
    for port in random.SystemRandom().sample(PORTS, k=200):
        probe = stack.enter_context(socket.socket())
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
    raise ConfigError(f"no free port between {PORTS.start} and {PORTS.stop} in 200 tries")
