"""The levels as users meet them: the client and the commands against a mesh of real processes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ostraka import Client, Consistency, NewDocument, NewPassage, WriteLevel
from ostraka.cli.main import app
from tests.mesh import Mesh

pytestmark = pytest.mark.processes
TEXT = "A lighthouse keeper trims the wick at every change of the watch."


def document(name: str) -> NewDocument:
    return NewDocument(document_id=f"levels/{name}", passages=[NewPassage(text=TEXT)])


def invoke(mesh: Mesh, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--mesh-file", str(mesh.config.path)], env={"COLUMNS": "200"})


async def test_levels_of_the_client(mesh_client: Client) -> None:
    whole = await mesh_client.upsert([document("a")], level=WriteLevel.ALL, idempotency_key="k", timeout_s=60)
    assert (whole.documents[0].acks, whole.meaning) == (3, "durable and visible on every voter")
    again = await mesh_client.upsert([document("a")], idempotency_key="k", timeout_s=60)
    assert (again.documents[0].repeated_key, again.documents[0].version) == (True, whole.documents[0].version)
    read = await mesh_client.get(["levels/a"], consistency=Consistency.LINEARIZABLE)
    assert [passage.text for passage in read.passages] == [TEXT]
    found = await mesh_client.search("lighthouse", consistency=Consistency.BOUNDED, max_staleness_ms=1)
    assert any(hit.passage.document_id == "levels/a" for hit in found)
    assert all(shard.staleness_ms == 0 for shard in found.coverage)


def test_levels_of_the_commands(mesh: Mesh, tmp_path: Any) -> None:
    source = tmp_path / "lamps"
    source.mkdir()
    (source / "oil.txt").write_text(TEXT, encoding="utf-8")
    stored = invoke(mesh, "ingest", str(source), "--level", "all")
    assert stored.exit_code == 0, stored.output
    read = invoke(mesh, "get", "lamps/oil.txt", "--consistency", "linearizable", "--json")
    assert json.loads(read.output)["passages"][0]["text"] == TEXT
    bounded = invoke(mesh, "search", "wick", "--consistency", "bounded", "--max-staleness-ms", "60000")
    assert bounded.exit_code == 0, bounded.output
    assert "ms old" in bounded.output
    unbounded = invoke(mesh, "search", "wick", "--consistency", "bounded")
    assert unbounded.exit_code != 0
    assert "max_staleness_ms" in unbounded.output
    gone = [invoke(mesh, "delete", "lamps/oil.txt", "--idempotency-key", "once", "--json") for _ in range(2)]
    first, second = (json.loads(result.output)["documents"][0] for result in gone)
    assert (first["version"], second["repeated_key"]) == (second["version"], True)
