"""What the nemesis draws from: a further fault is a class that says how it begins and ends, and a line here."""

from __future__ import annotations

from tests.chaos.fault import Fault
from tests.chaos.link_faults import HalfOpenLinks, LossyLinks, SlowLinks
from tests.chaos.machine_faults import DiskFull, SkewRouter
from tests.chaos.membership_faults import LoseDisk
from tests.chaos.net_mesh import faketime_library
from tests.chaos.partition_faults import Isolate, PartLink, Split
from tests.chaos.process_faults import KillNode, KillRouter, RestartAll, StopNode, StopRouter

ACTIONS: tuple[type[Fault], ...] = (
    KillNode,
    StopNode,
    KillRouter,
    StopRouter,
    RestartAll,
    Isolate,
    Split,
    PartLink,
    SlowLinks,
    LossyLinks,
    HalfOpenLinks,
    DiskFull,
    SkewRouter,
    LoseDisk,
)
"""Each is drawn once before any is drawn again."""


def possible() -> tuple[type[Fault], ...]:
    """Those that can be done on this machine."""
    return (
        ACTIONS if faketime_library() is not None else tuple(action for action in ACTIONS if action is not SkewRouter)
    )
