"""Bad requests against a running mesh: each refused with its field, every process goes on, nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest

from ostraka.client import Client
from ostraka.documents import NewDocument, NewPassage
from ostraka.v1.router_pb2_grpc import RouterServiceStub
from services.runtime.channel import open_channel
from services.runtime.errors import from_rpc_error
from services.runtime.tls import Role
from tests.integration.bad_requests import BadRequest, bad_requests
from tests.mesh import Mesh

pytestmark = pytest.mark.processes

COLLECTION = "docs"
DIM = 384
CASES = list(bad_requests(COLLECTION, DIM))
GOOD_IDS = [f"good/{number}" for number in range(8)]


async def test_every_bad_request_is_refused_by_its_field_and_nothing_is_lost(mesh: Mesh) -> None:
    before = {name: process.pid for name in mesh.supervisor.seats if (process := mesh.supervisor.process(name))}
    rng = np.random.default_rng(5)
    async with mesh.client(COLLECTION) as client:
        await client.upsert(
            NewDocument(
                document_id=document_id,
                passages=[NewPassage(text=document_id, vector=rng.normal(size=DIM).astype(np.float32))],
            )
            for document_id in GOOD_IDS
        )
        stored = await state(client)
        async with open_channel(
            mesh.config, mesh.config.router.addresses[0], server_role=Role.ROUTER, identity=Role.CLIENT.value
        ) as channel:
            stub = RouterServiceStub(channel)
            problems = [problem for case in CASES if (problem := await refusal_problem(stub, case))]
        assert problems == []
        assert await state(client) == stored
        await client.delete(GOOD_IDS)
    await mesh.supervisor.wait_serving(timeout_s=10)
    after = {name: process.pid for name in mesh.supervisor.seats if (process := mesh.supervisor.process(name))}
    assert after == before, "a process died and was replaced"


async def state(client: Client) -> list[tuple[str, str, str]]:
    """What the good documents hold, and that none of the bad ones exists."""
    reply = await client.get(GOOD_IDS)
    bad = await client.get(["bad"])
    assert bad.missing == ("bad",)
    return [(passage.passage_id, passage.text, str(passage.version)) for passage in reply.passages]


async def refusal_problem(stub: RouterServiceStub, case: BadRequest) -> str:
    """What is wrong with the mesh's answer to a bad request; empty when it was refused as it should be."""
    try:
        await _answer(stub, case)
    except grpc.aio.AioRpcError as error:
        found = from_rpc_error(error)
        if (found.code, found.field) != (case.code, case.field) or case.says not in found.message:
            return f"{case.name}: {found.code.name} {found.field!r} {found.message!r}"
        return ""
    return f"{case.name}: accepted"


async def _answer(stub: RouterServiceStub, case: BadRequest) -> None:
    method = getattr(stub, case.method)
    call = method(case.request, timeout=10)
    if isinstance(call, AsyncIterator) or case.method in ("Ask", "Export"):
        async for _ in call:
            continue
    else:
        await call
