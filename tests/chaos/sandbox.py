"""Namespaces that end with the run: network, mounts and processes, so that nothing of it can stay behind.

The run is process 1 of its own process namespace. However it ends, the kernel then kills all its processes, and with
the last of them go the network namespaces, bridges and mounts made inside.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

_UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
_PREPARE = "mkdir -p /run/netns && mount -t tmpfs none /run/netns && mount -t tmpfs none /dev/shm"
_PROBE = (
    f"{_PREPARE} && ip link add probe0 type bridge && ip netns add probe && ip link add probe1 type veth peer name eth0"
    " netns probe && ip netns exec probe iptables -w -A INPUT -s 10.77.0.1 -j DROP"
)
_PROBE_S = 20.0


def unavailable() -> str:
    """Why no run is possible here, found by making what it needs; empty when it is possible."""
    try:
        done = subprocess.run(
            [*_UNSHARE, "sh", "-ec", _PROBE], capture_output=True, text=True, timeout=_PROBE_S, env=_environment()
        )
    except OSError as error:
        return f"{_UNSHARE[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"making network namespaces took more than {_PROBE_S:g} s"
    return "" if done.returncode == 0 else " ".join(done.stderr.split()) or f"exit code {done.returncode}"


def start_inside(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Run `command` in namespaces of its own; it ends with the calling thread, whatever ends that."""
    script = f'{_PREPARE} && exec "$@"'
    return subprocess.Popen([*_WITH_PARENT, *_UNSHARE, "sh", "-ec", script, "sh", *command], env=_environment())


def _environment() -> Mapping[str, str]:
    """`ip` and `iptables` are not in everybody's search path."""
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
