"""Every search mode against a real mesh, and what the mesh then says of itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from ostraka import Client, Consistency, Fusion, NewDocument, NewPassage, SearchMode
from ostraka.answers import Answer
from ostraka.cli.main import app
from tests.mesh import Mesh, eventually

pytestmark = pytest.mark.processes

TEXTS = {
    "panic": "When the kernel oopses it prints code ZXQ9417 and stops the machine.",
    "crash": "An operating system that meets a fatal error halts and writes a report.",
    "bread": "Sourdough rises slowly because wild yeast is patient.",
    "oven": "Bake the loaf until its crust is dark and it sounds hollow.",
}
MEASURED_WITHIN_S = 30.0


async def fill(client: Client, prefix: str) -> None:
    written = await client.upsert(
        [
            NewDocument(document_id=f"{prefix}/{name}", source=f"test:{name}", passages=[NewPassage(text=text)])
            for name, text in TEXTS.items()
        ],
        timeout_s=60,
    )
    assert written.acknowledged


async def test_words_find_what_vectors_do_not_know(mesh_client: Client) -> None:
    await fill(mesh_client, "modes-words")
    found = await mesh_client.search("ZXQ9417", mode="lexical", k=100)
    mine = [hit for hit in found if hit.passage.document_id.startswith("modes-words/")]
    assert [hit.passage.document_id for hit in mine] == ["modes-words/panic"]
    assert mine[0].provenance.lexical_rank
    assert mine[0].provenance.lexical_score == mine[0].score > 0
    assert mine[0].provenance.dense_rank == 0
    assert found.mode is SearchMode.LEXICAL
    assert not (await mesh_client.search("the of and", mode="lexical")).hits


async def test_hybrid_and_two_stage_say_from_which_list_a_passage_came(mesh_client: Client) -> None:
    await fill(mesh_client, "modes-both")
    question = "fatal kernel error ZXQ9417"
    hybrid = await mesh_client.search(question, mode=SearchMode.HYBRID, k=20, fusion=Fusion(depth=50))
    panic = next(hit for hit in hybrid if hit.passage.document_id == "modes-both/panic")
    assert panic.provenance.dense_rank
    assert panic.provenance.lexical_rank
    assert panic.passage.text == TEXTS["panic"]
    assert [hit.provenance.rank for hit in hybrid] == list(range(1, len(hybrid) + 1))
    assert [hit.score for hit in hybrid] == sorted((hit.score for hit in hybrid), reverse=True)
    staged = await mesh_client.search(question, mode="two-stage", k=5)
    assert [hit.score for hit in staged] == sorted((hit.provenance.lexical_score for hit in staged), reverse=True)
    assert all(hit.provenance.dense_rank for hit in staged)


async def test_a_vector_with_words_searches_both_ways(mesh_client: Client) -> None:
    await fill(mesh_client, "modes-vector")
    stored = await mesh_client.get(["modes-vector/bread"], include_vectors=True)
    vector = stored.passages[0].vector
    assert vector is not None
    found = await mesh_client.search(vector, mode="hybrid", lexical_texts=["ZXQ9417"], k=50)
    ranks = {hit.passage.document_id: hit.provenance for hit in found}
    assert ranks["modes-vector/bread"].dense_score == pytest.approx(1.0, abs=1e-3)
    assert ranks["modes-vector/panic"].lexical_rank


async def test_words_of_an_acknowledged_write_are_in_the_very_next_search(mesh_client: Client) -> None:
    for turn in range(5):
        word = f"quorumword{turn}"
        await mesh_client.upsert([NewDocument(document_id="modes-raw", passages=[NewPassage(text=f"now {word}")])])
        (hit,) = await mesh_client.search(word, mode="lexical", consistency=Consistency.QUORUM)
        assert hit.passage.document_id == "modes-raw"
        if turn:
            assert not (await mesh_client.search(f"quorumword{turn - 1}", mode="lexical")).hits


async def test_ask_finds_by_words_and_cites(mesh_client: Client) -> None:
    await fill(mesh_client, "modes-ask")
    answer: Answer = await mesh_client.answer("What stops with code ZXQ9417?", mode="hybrid")
    used = {p.document_id.rpartition("/")[2]: p for p in answer.provenance if p.cited}
    assert used["panic"].lexical_rank
    assert not answer.abstained


def command(mesh: Mesh, *arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json", "--mesh-file", str(mesh.config.path)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_command_line_searches_by_mode_and_refuses_by_field(mesh: Mesh) -> None:
    told = command(mesh, "search", "ZXQ9417 kernel", "--mode", "hybrid", "--lexical-weight", "2", "--depth", "30")
    assert told["mode"] == "HYBRID"
    assert {"dense_rank", "lexical_rank", "score"} <= told["hits"][0]["provenance"].keys()
    arguments = ["search", "x", "--dense-weight", "2", "--json", "--mesh-file", str(mesh.config.path)]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code
    assert json.loads(refused.stderr)["error"]["field"] == "fusion"


def test_status_tells_memory_and_a_measured_recall(mesh: Mesh) -> None:
    for _ in range(4):
        command(mesh, "search", "dark crust", "--collection", "docs")

    async def measured() -> Any:
        status = await asyncio.to_thread(command, mesh, "status")
        replicas = [replica for node in status["mesh"]["nodes"] for replica in node["replicas"]]
        return replicas if any(replica["health"]["canary_queries"] for replica in replicas) else None

    async def told() -> Any:
        return await eventually(measured, MEASURED_WITHIN_S, "a canary measurement")

    replicas = asyncio.run(told())
    seen = [replica["health"] for replica in replicas if replica["health"]["canary_queries"]]
    assert all(0.9 <= health["recall_canary"] <= 1.0 for health in seen)
    for replica in replicas:
        parts = {part["part"]: part for part in replica["memory"]}
        assert {"delta", "lexical delta", "alive", "index", "database caches", "filters"} <= parts.keys()
        assert replica["health"]["damage_found"] == 0
