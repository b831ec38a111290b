"""The Locust user, in a process of its own as in life: gevent patches whatever process it runs in."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
from gevent import monkey
monkey.patch_all()
import json, gevent
from loadtest import user
from loadtest.dispatch import CallResult
from loadtest.workload import Operation, PlannedCall

calls = [PlannedCall(i, i * 0.002, "burst", Operation.SEARCH, i) for i in range(100)]
released = gevent.event.Event()

def perform(call):
    if call.index == 99:
        released.set()
    released.wait()
    return CallResult("UNAVAILABLE" if call.index % 10 == 0 else "OK", f"trace{call.index}")

offer = user.Offer(calls, perform, 1000, 1.0, [])
environment = user.run(offer)
total = environment.stats.total
print(json.dumps({
    "samples": len(offer.samples),
    "failed": sum(not s.ok for s in offer.samples),
    "locust_requests": total.num_requests,
    "locust_failures": total.num_failures,
    "inflight_peak": offer.inflight_peak,
    "names": sorted({name for name, _ in environment.stats.entries}),
}))
"""


def test_no_call_waits_for_another_and_locust_sees_every_one() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        "samples": 100,
        "failed": 10,
        "locust_requests": 100,
        "locust_failures": 10,
        "inflight_peak": 100,
        "names": ["search in burst"],
    }
