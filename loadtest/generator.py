"""The load generator: a process of its own, so that neither the mesh nor the report disturbs its schedule.

    python -m loadtest.generator RUN_DIRECTORY

It runs on gevent, because Locust does, with gRPC's own gevent support (`grpc.experimental.gevent`): measured on one
core of two, 800 calls per second leave at most 1.1 ms late at the 99th percentile for 40 % of that core. Each open
stream occupies a thread of gevent's pool; with gevent's default of ten, 40 streams of 0.3 s a second were seen to
take 2.7 s, so the pool is widened. The modules are patched inside `main`, before anything that opens a lock or a
socket is imported; nothing outside this process is ever patched.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

STREAMS_MAX = 512
"""Answers that can stream at the same time without waiting for each other; threads are made as they are needed."""


def main(directory: Path) -> None:
    """Offer the directory's plan and leave samples and the generator's own health beside it."""
    from gevent import get_hub, monkey

    monkey.patch_all()
    get_hub().threadpool.maxsize = STREAMS_MAX
    from grpc.experimental import gevent as grpc_gevent

    grpc_gevent.init_gevent()
    health = _offer(directory)
    _write_health(directory, health)


def _offer(directory: Path) -> dict[str, object]:
    """Everything from here on sees patched modules."""
    import time
    from importlib.metadata import version

    import grpc
    import locust

    from loadtest import user
    from loadtest.calls import RouterCalls
    from loadtest.plan import SAMPLES_FILE, read_plan
    from loadtest.samples import Sample, write_samples
    from observability import tracing
    from services.runtime.config import load

    plan = read_plan(directory)
    config = load(Path(plan.mesh_file))
    telemetry = config.telemetry
    tracing.configure(
        tracing.TracingSettings(
            service_name="loadtest",
            instance="0",
            version=version("ostraka"),
            traces_dir=config.traces_dir,
            sample_ratio=telemetry.sample_ratio,
            otlp_endpoint=telemetry.otlp_endpoint,
            file_bytes_max=telemetry.file_bytes_max,
            queue_spans_max=telemetry.queue_spans_max,
        )
    )
    samples: list[Sample] = []
    calls = plan.calls()
    with RouterCalls(config, plan.load, plan.questions) as router:
        router.connect()
        offer = user.Offer(calls, router.perform, plan.load.inflight_max, plan.load.deadline_ms / 1e3, samples)
        cpu_s, began_s = time.process_time(), time.perf_counter()
        environment = user.run(offer)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - began_s
    tracing.shutdown()
    write_samples(directory / SAMPLES_FILE, sorted(samples, key=lambda sample: sample.index))
    return {
        "cpu_share": cpu_s / wall_s,
        "inflight_peak": offer.inflight_peak,
        "locust_requests": environment.stats.total.num_requests,
        "locust_failures": environment.stats.total.num_failures,
        "spans_dropped": tracing.spans_dropped(),
        "versions": {"locust": locust.__version__, "grpc": grpc.__version__, "python": sys.version.split()[0]},
    }


def _write_health(directory: Path, health: dict[str, object]) -> None:
    from loadtest.plan import GENERATOR_FILE

    (directory / GENERATOR_FILE).write_text(json.dumps(health, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
