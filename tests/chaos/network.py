"""Network namespaces on one bridge: one for each process, with its own address and its own packet filter."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from pathlib import Path

SUBNET = "10.77.0"
BRIDGE = "chaos0"
FIRST_HOST = 11
_CLONE_NEWNET = 0x4000_0000
_LIBC = ctypes.CDLL(None, use_errno=True)


class Network:
    """The bridge in the caller's own namespace, and what hangs on it. For use inside a sandbox, which also ends it."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "address", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")

    def add(self, name: str) -> str:
        """A namespace with a link to the bridge; its IPv4 address."""
        number = FIRST_HOST + len(self._addresses)
        address = self._addresses[name] = f"{SUBNET}.{number}"
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", f"veth{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", f"veth{number}", "master", BRIDGE, "up")
        _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", name, "link", "set", "eth0", "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        return address

    def prefix(self, name: str) -> tuple[str, ...]:
        """What a command begins with to run there."""
        return ("ip", "netns", "exec", name)

    def drop(self, source: str, target: str) -> None:
        """Nothing that `source` sends reaches `target` from now on; the other way is not touched."""
        self._filter("-A", source, target)

    def pass_again(self, source: str, target: str) -> None:
        """Undo one `drop`."""
        self._filter("-D", source, target)

    def _filter(self, verb: str, source: str, target: str) -> None:
        _run(*self.prefix(target), "iptables", "-w", verb, "INPUT", "-s", self._addresses[source], "-j", "DROP")

    def socket_in(self, name: str) -> socket.socket:
        """A TCP socket of that namespace, for use by any thread."""
        made: list[socket.socket] = []
        failed: list[OSError] = []

        def make() -> None:
            # Namespaces belong to threads: this one moves there, makes the socket, and ends.
            with Path("/run/netns", name).open() as file:
                if _LIBC.setns(file.fileno(), _CLONE_NEWNET):
                    failed.append(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
                else:
                    made.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))

        thread = threading.Thread(target=make, name=f"socket-in-{name}")
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made[0]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
