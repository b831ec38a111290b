"""The generator process against a scripted router over real TLS: codes, trace ids and schedule are as planned."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.arrivals import Phase, Process
from loadtest.calls import EMPTY, UNFINISHED
from loadtest.plan import GENERATOR_FILE, SAMPLES_FILE, Plan, write_plan
from loadtest.questions import Question
from loadtest.samples import Sample, read_samples
from loadtest.slo import Load
from loadtest.verdict import complete
from loadtest.workload import Operation
from ostraka.cli.mesh_file import free_ports, mesh_toml
from ostraka.v1 import passage_pb2, router_pb2
from services.runtime.config import Config, load
from services.runtime.errors import Unavailable
from services.runtime.server import MeshServer
from services.runtime.tls import Role, dev_certificates
from tests.inprocess import generic_servicers

pytestmark = pytest.mark.processes

ROUTER = "/ostraka.v1.RouterService/"
PHASES = (Phase(name="baseline", duration_s=0.5, rate_per_s=40), Phase(name="burst", duration_s=0.5, rate_per_s=200))


class ScriptedRouter:
    """Answers by the question's text, and remembers what it was asked and under which trace."""

    def __init__(self) -> None:
        self.trace_ids: list[str] = []
        self.searches: list[router_pb2.SearchRequest] = []
        self.written: list[router_pb2.NewDocument] = []

    def behaviors(self) -> dict[str, Any]:
        """Handlers by full method name."""
        return {f"{ROUTER}Search": self._search, f"{ROUTER}Ask": self._ask, f"{ROUTER}Upsert": self._upsert}

    def _remember(self, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        self.trace_ids.append(metadata["traceparent"].split("-")[1])

    async def _search(self, request: router_pb2.SearchRequest, context: Any) -> router_pb2.SearchResponse:
        self._remember(context)
        self.searches.append(request)
        text = request.queries[0].text
        if text == "down":
            raise Unavailable("too few voters")
        hits = [] if text == "empty" else [passage_pb2.Passage(passage_id="d#0")]
        hit_rows = [router_pb2.QueryResult(hits=[_hit(passage) for passage in hits])]
        return router_pb2.SearchResponse(results=hit_rows)

    async def _ask(self, request: router_pb2.AskRequest, context: Any) -> AsyncIterator[router_pb2.AskEvent]:
        self._remember(context)
        yield router_pb2.AskEvent(delta="because")
        if request.question != "empty":
            yield router_pb2.AskEvent(answer=router_pb2.Answer(text="because"))

    async def _upsert(self, request: router_pb2.UpsertRequest, context: Any) -> router_pb2.UpsertResponse:
        self._remember(context)
        self.written += request.documents
        sure = request.documents[0].passages[0].text.startswith("good")
        outcome = router_pb2.WRITE_OUTCOME_ACKNOWLEDGED if sure else router_pb2.WRITE_OUTCOME_UNCERTAIN
        return router_pb2.UpsertResponse(documents=[router_pb2.DocumentWrite(outcome=outcome, reason="late")])


def _hit(passage: passage_pb2.Passage) -> passage_pb2.Hit:
    return passage_pb2.Hit(passage=passage)


def mesh(tmp_path: Path) -> Config:
    """A mesh file on free ports, with certificates."""
    path = tmp_path / "mesh.toml"
    path.write_text(mesh_toml(ports=free_ports(("embed", "router", "generator", "a", "b", "c"))), encoding="utf-8")
    config = load(path)
    dev_certificates(config)
    return config


async def generate(config: Config, plan: Plan, router: ScriptedRouter, directory: Path) -> tuple[Sample, ...]:
    """Run the generator process against the scripted router."""
    write_plan(directory, plan)
    server = await MeshServer.start(
        config,
        service_name="router",
        role=Role.ROUTER,
        identity="router",
        address=config.router.addresses[0],
        servicers=generic_servicers(router.behaviors()),
    )
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "loadtest.generator", str(directory), stderr=asyncio.subprocess.PIPE
        )
        _, errors = await process.communicate()
    finally:
        await server.stop(0)
    assert process.returncode == 0, errors.decode()
    return complete(plan.calls(), tuple(read_samples(directory / SAMPLES_FILE)))


async def test_every_planned_call_is_made_and_told_apart(tmp_path: Path) -> None:
    config, router = mesh(tmp_path), ScriptedRouter()
    load = Load(
        arrivals=Process.CONSTANT,
        zipf_exponent=0.0,
        mix={Operation.SEARCH: 0.6, Operation.ASK: 0.2, Operation.UPSERT: 0.2},
    )
    questions = tuple(Question(text=text) for text in ("good", "empty", "down"))
    plan = Plan(mesh_file=str(config.path), load=load, phases=PHASES, questions=questions)
    samples = await generate(config, plan, router, tmp_path)

    assert len(samples) == 120
    expected = {
        ("search", 0): "OK",
        ("search", 1): EMPTY,
        ("search", 2): "UNAVAILABLE",
        ("ask", 0): "OK",
        ("ask", 1): UNFINISHED,
        ("ask", 2): "OK",
        ("upsert", 0): "OK",
        ("upsert", 1): "UNCERTAIN",
        ("upsert", 2): "UNCERTAIN",
    }
    assert {(s.operation, s.question): s.code for s in samples} == expected
    assert Counter(s.trace_id for s in samples) == Counter(router.trace_ids)
    assert len(set(router.trace_ids)) == len(samples)
    assert all(s.sent_s >= s.intended_s and s.done_s >= s.sent_s for s in samples)
    assert {document.document_id for document in router.written} <= {f"loadtest-writer-{i}" for i in range(3)}
    health = json.loads((tmp_path / GENERATOR_FILE).read_text(encoding="utf-8"))
    assert health["locust_requests"] == len(samples)
    assert health["locust_failures"] == sum(not s.ok for s in samples)
    assert health["cpu_share"] > 0
    assert health["spans_dropped"] == 0


async def test_vectors_are_asked_as_vectors(tmp_path: Path) -> None:
    config, router = mesh(tmp_path), ScriptedRouter()
    row = np.array([0.6, 0.8], "<f4")
    load = Load(mix={Operation.SEARCH: 1.0}, k=3, consistency="one")
    plan = Plan(mesh_file=str(config.path), load=load, phases=PHASES[:1], questions=(Question(vector=row.tobytes()),))
    samples = await generate(config, plan, router, tmp_path)
    assert all(sample.ok for sample in samples)
    request = router.searches[0]
    assert request.queries[0].vector == passage_pb2.Vector(dim=2, data=row.tobytes())
    assert (request.k, request.consistency) == (3, passage_pb2.CONSISTENCY_LEVEL_ONE)
