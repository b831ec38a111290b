"""Bounded, resumable, and honest about what was not acknowledged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ostraka.documents import NewDocument
from ostraka.errors import InvalidRequest, OstrakaError, Unavailable
from ostraka.ingest.checkpoint import Checkpoint, CheckpointError, checkpoint_path, forget
from ostraka.ingest.pipeline import IngestLimits, IngestReport, ingest, total_bytes
from ostraka.results import DocumentWrite, Outcome, Version, WriteLevel, WriteResult

LIMITS = IngestLimits(passages_batch=3, documents_batch=2, upserts_inflight=2)


class Mesh:
    """Stands in for the client: remembers batches, and answers as told, once `together` calls are under way."""

    def __init__(
        self, verdict: Callable[[str], Outcome | OstrakaError] = lambda _id: Outcome.ACKNOWLEDGED, together: int = 1
    ) -> None:
        self.verdict = verdict
        self.batches: list[list[str]] = []
        self.inflight = self.inflight_max = 0
        self.together = together
        self.gathered = asyncio.Event()

    @property
    def sent(self) -> list[str]:
        return sorted(document_id for batch in self.batches for document_id in batch)

    async def upsert(
        self,
        documents: Iterable[NewDocument],
        *,
        collection: str | None = None,
        level: WriteLevel = WriteLevel.QUORUM,
        timeout_s: float | None = None,
        check: bool = True,
    ) -> WriteResult:
        assert (collection, check) == ("docs", False)
        assert level is WriteLevel.QUORUM
        ids = [document.document_id for document in documents]
        self.batches.append(ids)
        self.inflight += 1
        self.inflight_max = max(self.inflight_max, self.inflight)
        if self.inflight >= self.together:
            self.gathered.set()
        await self.gathered.wait()
        self.inflight -= 1
        verdicts = [self.verdict(document_id) for document_id in ids]
        for verdict in verdicts:
            if isinstance(verdict, OstrakaError):
                raise verdict
        return WriteResult(tuple(map(written, ids, verdicts)), "trace")


def written(document_id: str, outcome: Outcome | OstrakaError) -> DocumentWrite:
    assert isinstance(outcome, Outcome)
    return DocumentWrite(document_id, outcome, Version(1, 1), 2, 1, (0,), 0, "because")


def corpus(tmp_path: Path, count: int = 7) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for n in range(count):
        (folder / f"{n}.txt").write_text(f"Document number {n}.")
    return folder


async def run(mesh: Mesh, folder: Path, force: bool = False) -> IngestReport:
    path = checkpoint_path(folder.parent / "ingest", "docs", [folder])
    with Checkpoint(path) as checkpoint:
        return await ingest(mesh, [folder], collection="docs", checkpoint=checkpoint, limits=LIMITS, force=force)


async def test_everything_is_sent_once_in_bounded_batches(tmp_path: Path) -> None:
    mesh, folder = Mesh(together=LIMITS.upserts_inflight), corpus(tmp_path)
    report = await run(mesh, folder)
    assert mesh.sent == [f"docs/{n}.txt" for n in range(7)]
    assert max(map(len, mesh.batches)) == LIMITS.documents_batch
    assert mesh.inflight_max == LIMITS.upserts_inflight
    assert (report.documents, report.passages, report.truncated_passages, report.ok) == (7, 7, 7, True)


async def test_a_second_run_sends_only_what_changed(tmp_path: Path) -> None:
    folder = corpus(tmp_path)
    await run(Mesh(), folder)
    (folder / "3.txt").write_text("Something else.")
    (folder / "8.txt").write_text("New.")
    again = Mesh()
    report = await run(again, folder)
    assert again.sent == ["docs/3.txt", "docs/8.txt"]
    assert (report.documents, report.unchanged) == (2, 6)
    everything = Mesh()
    await run(everything, folder, force=True)
    assert len(everything.sent) == 8


async def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = corpus(tmp_path, 12)
    acknowledged: list[str] = []

    def interrupted_at_the_fifth(document_id: str) -> Outcome:
        if len(acknowledged) == 4:
            task.cancel()
        acknowledged.append(document_id)
        return Outcome.ACKNOWLEDGED

    task = asyncio.ensure_future(run(Mesh(interrupted_at_the_fifth), folder))
    with pytest.raises(asyncio.CancelledError):
        await task
    path = checkpoint_path(folder.parent / "ingest", "docs", [folder])
    remembered = {json.loads(line)["id"] for line in path.read_text().splitlines()}
    assert remembered
    assert remembered < set(acknowledged) | {f"docs/{n}.txt" for n in range(12)}
    second = Mesh()
    report = await run(second, folder)
    assert set(second.sent) == {f"docs/{n}.txt" for n in range(12)} - remembered
    assert report.unchanged == len(remembered)
    assert report.documents + report.unchanged == 12


async def test_what_was_not_acknowledged_is_reported_and_sent_again(tmp_path: Path) -> None:
    folder = corpus(tmp_path, 4)
    outcomes = {"docs/1.txt": Outcome.UNCERTAIN, "docs/2.txt": Outcome.REFUSED}
    report = await run(Mesh(lambda document_id: outcomes.get(document_id, Outcome.ACKNOWLEDGED)), folder)
    assert {(f.name, f.reason) for f in report.failed} == {
        ("docs/1.txt", "UNCERTAIN: because"),
        ("docs/2.txt", "REFUSED: because"),
    }
    assert not report.ok
    again = Mesh()
    await run(again, folder)
    assert again.sent == ["docs/1.txt", "docs/2.txt"]


async def test_one_refused_document_does_not_take_its_batch_along(tmp_path: Path) -> None:
    folder = corpus(tmp_path, 4)

    def verdict(document_id: str) -> Outcome | OstrakaError:
        return InvalidRequest("too long") if document_id == "docs/2.txt" else Outcome.ACKNOWLEDGED

    report = await run(Mesh(verdict), folder)
    assert report.documents == 3
    assert [(f.name, f.reason) for f in report.failed] == [("docs/2.txt", "InvalidRequest: too long")]


async def test_an_unreachable_mesh_fails_documents_not_the_run(tmp_path: Path) -> None:
    report = await run(Mesh(lambda _id: Unavailable("down")), corpus(tmp_path, 3))
    assert [f.reason for f in report.failed] == ["Unavailable: down"] * 3


async def test_progress_accounts_for_every_byte(tmp_path: Path) -> None:
    folder = corpus(tmp_path)
    (folder / "skipped.bin").write_bytes(b"x" * 999)
    seen: list[int] = []
    with Checkpoint(tmp_path / "c.jsonl") as checkpoint:
        report = await ingest(
            Mesh(),
            [folder],
            collection="docs",
            checkpoint=checkpoint,
            limits=LIMITS,
            on_progress=lambda _report, size: seen.append(size),
        )
    assert sum(seen) == total_bytes([folder]) == sum(p.stat().st_size for p in folder.glob("*.txt"))
    assert [skip.name for skip in report.skipped] == ["docs/skipped.bin"]


async def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = corpus(tmp_path)

    def full(_self: Checkpoint, _id: str, _sha256: str) -> None:
        raise CheckpointError("no space left")

    monkeypatch.setattr(Checkpoint, "add", full)
    with pytest.raises(CheckpointError, match="no space left"):
        await run(Mesh(), folder)


def test_checkpoints_survive_a_cut_line_and_forget_what_was_deleted(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, "docs", [tmp_path / "a"])
    assert path != checkpoint_path(tmp_path, "other", [tmp_path / "a"])
    assert path != checkpoint_path(tmp_path, "docs", [tmp_path / "b"])
    with Checkpoint(path) as checkpoint:
        checkpoint.add("a", "1")
        checkpoint.add("b", "2")
    with path.open("a") as file:
        file.write('{"id": "c", "sha')
    with Checkpoint(path) as checkpoint:
        assert len(checkpoint) == 2
        assert checkpoint.holds("a", "1")
        assert not checkpoint.holds("a", "other")
    with path.open("a") as file:
        file.write('{"id": "c", "sha')
    forget(tmp_path, ["a"])
    with Checkpoint(path) as checkpoint:
        assert not checkpoint.holds("a", "1")
        assert checkpoint.holds("b", "2")


def test_a_checkpoint_in_an_impossible_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"), Checkpoint(tmp_path / "file" / "c.jsonl"):
        pytest.fail("opened")
