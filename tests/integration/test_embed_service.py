"""The embed service with its real model, behind mutual TLS."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from ostraka.v1 import embed_pb2, embed_pb2_grpc
from services.embed.batcher import Batcher
from services.embed.batching import Limits
from services.embed.encoder import SentenceEncoder
from services.embed.model import PACKAGED_SHA256, ModelFiles, locate
from services.embed.service import EmbedServicer
from services.runtime.channel import open_channel
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import Config, EmbedConfig, parse
from services.runtime.errors import from_rpc_error
from services.runtime.server import MeshServer
from services.runtime.tls import Role, dev_certificates

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SAMPLE = 50
Stub: TypeAlias = "embed_pb2_grpc.EmbedServiceAsyncStub"


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return locate(EmbedConfig())


@pytest.fixture(scope="module")
def encoder(files: ModelFiles) -> SentenceEncoder:
    return SentenceEncoder(files, threads=0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    raw = {"embed": {"request_texts_max": 64, "queue_texts_max": 128, "text_bytes_max": 20_000}}
    found = parse(raw, tmp_path_factory.mktemp("mesh") / "mesh.toml", {})
    dev_certificates(found)
    return found


@asynccontextmanager
async def serving(config: Config, files: ModelFiles, encoder: SentenceEncoder) -> AsyncIterator[Stub]:
    batcher = Batcher(encoder, Limits(config.embed.batch_texts_max, config.embed.queue_texts_max), SYSTEM_CLOCK)
    servicer = EmbedServicer(config.embed, files, encoder, batcher)
    server = await MeshServer.start(
        config,
        service_name="embed",
        role=Role.EMBED,
        identity="embed",
        address="127.0.0.1:0",
        servicers=[(embed_pb2_grpc.add_EmbedServiceServicer_to_server, servicer)],
    )
    channel = open_channel(config, f"127.0.0.1:{server.port}", server_role=Role.EMBED, identity="router")
    try:
        yield embed_pb2_grpc.EmbedServiceStub(channel)
    finally:
        await channel.close()
        await server.stop(0)
        await batcher.close()


@pytest.fixture
async def stub(config: Config, files: ModelFiles, encoder: SentenceEncoder) -> AsyncIterator[Stub]:
    async with serving(config, files, encoder) as found:
        yield found


def passages(*texts: str) -> embed_pb2.EmbedRequest:
    return embed_pb2.EmbedRequest(texts=texts, kind=embed_pb2.EMBED_KIND_PASSAGE)


def matrix(reply: embed_pb2.EmbedResponse) -> NDArray[np.float32]:
    return np.frombuffer(reply.vectors, "<f4").reshape(-1, reply.dim)


async def test_the_model_describes_itself(stub: Stub) -> None:
    described = await stub.DescribeModel(embed_pb2.DescribeModelRequest(), timeout=60)
    assert (described.model.id, described.model.revision) == ("all-MiniLM-L6-v2", PACKAGED_SHA256[:12])
    assert (described.dim, described.max_tokens) == (384, 256)


async def test_vectors_are_unit_length_and_near_in_meaning(stub: Stub) -> None:
    reply = await stub.Embed(passages("A cat sits.", "A kitten is sitting.", "The stock market fell."), timeout=60)
    vectors = matrix(reply)
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > vectors[0] @ vectors[2]
    assert (reply.model.id, reply.batch_size) == ("all-MiniLM-L6-v2", 3)
    assert reply.compute_us > 0


async def test_truncation_is_told(stub: Stub) -> None:
    reply = await stub.Embed(passages("short", "word " * 254, "word " * 255), timeout=60)
    assert list(reply.token_counts) == [3, 256, 257]
    assert list(reply.truncated) == [False, False, True]


async def test_a_vector_does_not_depend_on_its_company(stub: Stub) -> None:
    texts = ["one", "a somewhat longer text about nothing in particular", "word " * 100]
    together = matrix(await stub.Embed(passages(*texts), timeout=60))
    replies = await asyncio.gather(*(stub.Embed(passages(text), timeout=60) for text in texts))
    alone = np.concatenate([matrix(reply) for reply in replies])
    assert np.einsum("ij,ij->i", together, alone).min() > 0.999_99


async def test_queries_and_passages_may_come_at_once(stub: Stub) -> None:
    calls = [stub.Embed(passages(*(f"passage {i} {j}" for j in range(8))), timeout=60) for i in range(4)]
    queries = [stub.Embed(embed_pb2.EmbedRequest(texts=[f"query {i}"]), timeout=60) for i in range(8)]
    replies = await asyncio.gather(*queries, *calls)
    assert [len(matrix(reply)) for reply in replies] == [1] * 8 + [8] * 4


@pytest.mark.parametrize(
    ("asked", "code", "field"),
    [
        (embed_pb2.EmbedRequest(), grpc.StatusCode.INVALID_ARGUMENT, "texts"),
        (passages("fine", " \n"), grpc.StatusCode.INVALID_ARGUMENT, "texts[1]"),
        (passages("ä" * 10_001), grpc.StatusCode.INVALID_ARGUMENT, "texts[0]"),
        (passages(*["x"] * 65), grpc.StatusCode.INVALID_ARGUMENT, "texts"),
        (embed_pb2.EmbedRequest(texts=["x"], kind=99), grpc.StatusCode.INVALID_ARGUMENT, "kind"),  # type: ignore[arg-type]  # an unknown enum value is the case
        (embed_pb2.EmbedRequest(texts=["x"], model="other"), grpc.StatusCode.FAILED_PRECONDITION, "model"),
    ],
)
async def test_bad_requests_name_the_field_and_harm_nobody(
    stub: Stub, asked: embed_pb2.EmbedRequest, code: grpc.StatusCode, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Embed(asked, timeout=60)
    assert failed.value.code() is code
    assert from_rpc_error(failed.value).field == field
    assert field in (failed.value.details() or "")
    named = embed_pb2.EmbedRequest(texts=["x"], model="all-MiniLM-L6-v2")
    assert len(matrix(await stub.Embed(named, timeout=60))) == 1


async def test_a_flood_is_refused_with_a_time_to_come_back(stub: Stub) -> None:
    calls = [asyncio.ensure_future(stub.Embed(passages(*["word " * 50] * 64), timeout=120)) for _ in range(6)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refusals = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert 1 <= len(refusals) < 6
    for refusal in refusals:
        assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert from_rpc_error(refusal).retry_ms > 0


async def test_the_prepared_vectors_are_ours(stub: Stub) -> None:
    """Everything else may then use the prepared vectors instead of embedding 26,112 passages again."""
    if not (DATA / "sysdocs_minilm_f16.npy").is_file():
        pytest.skip(f"{DATA} is not there")
    ids = (DATA / "sysdocs_minilm_ids.txt").read_text().splitlines()
    rows = {ids[row]: row for row in range(0, len(ids), len(ids) // SAMPLE)}
    wanted: dict[str, str] = {}
    with gzip.open(DATA / "sysdocs.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            passage = json.loads(line)
            if passage["_id"] in rows:
                wanted[passage["_id"]] = f"{passage['title']} {passage['text']}".strip()
    names = list(wanted)[:SAMPLE]
    assert len(names) == SAMPLE
    prepared = np.load(DATA / "sysdocs_minilm_f16.npy", mmap_mode="r")[[rows[name] for name in names]].astype(
        np.float32
    )
    vectors = matrix(await stub.Embed(passages(*(wanted[name] for name in names)), timeout=120))
    cosines = np.einsum("ij,ij->i", vectors, prepared) / np.linalg.norm(prepared, axis=1)
    assert cosines.min() >= 0.999
