"""The client and the commands against a real mesh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ostraka import Client, Consistency, NewDocument, NewPassage, errors
from ostraka.cli.main import app
from tests.mesh import Mesh, eventually

pytestmark = pytest.mark.processes

TEXTS = {
    "kiln": "The potter fires the kiln at twelve hundred degrees for two days.",
    "glaze": "A celadon glaze takes its green from a trace of iron.",
    "clay": "River clay must rest a winter before it is thrown.",
}


def documents(prefix: str) -> list[NewDocument]:
    return [
        NewDocument(
            document_id=f"{prefix}/{name}", source=f"test://{name}", passages=[NewPassage(text=text, title=name)]
        )
        for name, text in TEXTS.items()
    ]


async def test_what_is_written_is_read(mesh_client: Client) -> None:
    written = await mesh_client.upsert(documents("client-rw"), timeout_s=60)
    assert written.acknowledged
    assert all(document.acks >= 2 for document in written.documents)
    found = await mesh_client.search("What gives celadon its green colour?", k=3)
    best = found.hits[0]
    assert best.passage.document_id.endswith("/glaze")
    assert found.complete
    assert best.provenance.rank == 1
    stored = await mesh_client.get(["client-rw/kiln", "client-rw/none"], include_vectors=True)
    assert [p.text for p in stored.passages] == [TEXTS["kiln"]]
    assert stored.missing == ("client-rw/none",)
    assert stored.passages[0].vector is not None
    assert float(np.linalg.norm(stored.passages[0].vector)) == pytest.approx(1, abs=1e-3)
    again = await mesh_client.search(stored.passages[0].vector, k=1)
    assert again.hits[0].score == pytest.approx(1, abs=1e-3)


async def test_a_session_reads_what_it_wrote_and_carries_over(mesh: Mesh, mesh_client: Client) -> None:
    await mesh_client.upsert(documents("client-session"), timeout_s=60)
    assert mesh_client.session_token
    second = Client(mesh.config.router.addresses, certs=mesh.config.certs_dir, session_token=mesh_client.session_token)
    async with second:
        result = await second.get(["client-session/clay"], consistency=Consistency.SESSION)
        assert [p.text for p in result.passages] == [TEXTS["clay"]]
        searched = await second.search("clay", consistency=Consistency.SESSION)
        assert searched.consistency is Consistency.SESSION


async def test_an_answer_quotes_cites_and_is_traced(mesh: Mesh, mesh_client: Client) -> None:
    await mesh_client.upsert(documents("client-ask"), timeout_s=60)
    answer = await mesh_client.answer("How long does the potter fire the kiln?")
    assert "two days" in " ".join(answer.text.split())
    assert {c.passage_id for c in answer.citations} == {p.passage_id for p in answer.provenance if p.cited}
    spans = await eventually(lambda: mesh.spans(answer.trace_id), what="an exported trace")
    assert {span.trace_id for span in spans} == {answer.trace_id}


async def test_a_deleted_document_is_gone(mesh_client: Client) -> None:
    await mesh_client.upsert(documents("client-delete"), timeout_s=60)
    assert (await mesh_client.delete(["client-delete/clay"])).acknowledged
    result = await mesh_client.get(["client-delete/clay", "client-delete/kiln"])
    assert result.missing == ("client-delete/clay",)
    assert len(result.passages) == 1


async def test_refusals_name_their_field(mesh_client: Client) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        await mesh_client.search("q", k=10_000)
    assert caught.value.field == "k"
    with pytest.raises(errors.NotFound) as missing:
        await mesh_client.search("q", collection="nowhere")
    assert missing.value.field == "collection"
    with pytest.raises(errors.InvalidRequest):
        await mesh_client.search(np.full(384, np.nan))
    assert (await mesh_client.status()).nodes, "every process goes on serving"


def invoke(mesh: Mesh, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--mesh-file", str(mesh.config.path)], env={"COLUMNS": "200"})


def ok_json(mesh: Mesh, *arguments: str) -> Any:
    result = invoke(mesh, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_commands_from_ingest_to_trace(mesh: Mesh, tmp_path: Path) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "owl.md").write_text("# The owl\n\nThe tawny owl of the archive sleeps on the atlas shelf.\n")
    (folder / "bad.txt").write_bytes(b"\xff\xfe\xfd")
    report = ok_json(mesh, "ingest", str(folder))
    assert (report["documents"], report["passages"], report["failed"]) == (1, 1, [])
    assert [skip["name"] for skip in report["skipped"]] == ["shelf/bad.txt"]
    assert ok_json(mesh, "ingest", str(folder))["unchanged"] == 1

    hits = ok_json(mesh, "search", "Where does the tawny owl sleep?", "-k", "2")["hits"]
    assert hits[0]["passage"]["passage_id"] == "shelf/owl.md#0"
    assert hits[0]["passage"]["title"] == "The owl"
    (passage,) = ok_json(mesh, "get", "shelf/owl.md")["passages"]
    assert (folder / "owl.md").read_text()[passage["char_start"] : passage["char_end"]] == passage["text"]

    asked = invoke(mesh, "ask", "Where does the tawny owl of the archive sleep?", "--json")
    assert asked.exit_code == 0, asked.output
    events = [json.loads(line) for line in asked.stdout.splitlines()]
    assert [next(iter(event)) for event in (events[0], events[-1])] == ["retrieved", "answer"]
    answer = events[-1]["answer"]
    assert "atlas shelf" in answer["text"]
    assert "passage id" in invoke(mesh, "ask", "Where does the tawny owl of the archive sleep?").output

    def trace_printed() -> str:
        shown = invoke(mesh, "trace", answer["trace_id"])
        return shown.output if shown.exit_code == 0 and "RouterService/Ask" in shown.output else ""

    for _ in range(200):
        if output := trace_printed():
            break
    assert "retrieval docs" in output

    assert ok_json(mesh, "delete", "shelf/owl.md")["documents"][0]["outcome"] == "ACKNOWLEDGED"
    assert invoke(mesh, "get", "shelf/owl.md").exit_code == 1
    assert ok_json(mesh, "ingest", str(folder))["documents"] == 1, "a deleted document is not taken for ingested"


def test_status_shows_every_process_and_replica(mesh: Mesh) -> None:
    status = ok_json(mesh, "status")
    assert all(status["processes"].values())
    assert len([replica for node in status["mesh"]["nodes"] for replica in node["replicas"]]) == 6
    assert "SERVING" in invoke(mesh, "status").output


def test_up_leaves_what_runs_alone(mesh: Mesh) -> None:
    assert ok_json(mesh, "up")["started"] == []
