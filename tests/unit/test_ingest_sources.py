"""Which documents files hold, and why the others are left out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ostraka.ingest.chunker import ChunkLimits
from ostraka.ingest.sources import FILE_BYTES_MAX, Skip, SourceDocument, SourceFile, find_files, read_documents

LIMITS = ChunkLimits()


def read(*paths: Path) -> tuple[list[SourceDocument], dict[str, str]]:
    """Documents, and reasons by name."""
    documents: list[SourceDocument] = []
    reasons: dict[str, str] = {}
    for found in find_files(paths):
        for item in [found] if isinstance(found, Skip) else read_documents(found, LIMITS):
            if isinstance(item, Skip):
                reasons[item.name] = item.reason
            else:
                documents.append(item)
    return documents, reasons


def test_every_reason_is_said(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    (root / ".git").mkdir(parents=True)
    (root / "sub").mkdir()
    (root / ".git" / "config.md").write_text("hidden")
    (root / "good.md").write_text("# Good\n\ntext\n")
    (root / "sub" / "also.txt").write_text("also good")
    (root / "bom.txt").write_bytes(b"\xef\xbb\xbfwith a byte order mark")
    (root / "empty.md").write_text("")
    (root / "blank.md").write_text(" \n\n")
    (root / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (root / "binary.txt").write_bytes(b"PK\x03\x04\0\0\0\0")
    (root / "picture.png").write_bytes(b"x")
    (root / "Makefile").write_text("all:")
    with (root / "huge.txt").open("wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)
    os.mkfifo(root / "pipe.txt")
    documents, reasons = read(root, tmp_path / "absent")
    assert [d.document_id for d in documents] == ["docs/bom.txt", "docs/good.md", "docs/sub/also.txt"]
    assert documents[0].chunks[0].text == "with a byte order mark"
    assert documents[1].source == (root / "good.md").as_uri()
    assert reasons == {
        "docs/empty.md": "empty",
        "docs/blank.md": "holds no text",
        "docs/latin.txt": "not UTF-8: byte 0xe9 at position 3",
        "docs/binary.txt": "binary",
        "docs/picture.png": "unsupported type .png",
        "docs/Makefile": "unsupported type without suffix",
        "docs/huge.txt": f"too large: {FILE_BYTES_MAX + 1:,} bytes, at most {FILE_BYTES_MAX:,}",
        "docs/pipe.txt": "not a regular file",
        str(tmp_path / "absent"): "no such file or folder",
    }


def test_a_file_that_vanishes_is_said(tmp_path: Path) -> None:
    gone = SourceFile(tmp_path / "gone.txt", "gone.txt", 3)
    assert list(read_documents(gone, LIMITS)) == [Skip("gone.txt", "unreadable: No such file or directory")]


def test_json_lines_in_beir_layout(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    lines = [
        json.dumps({"_id": "a", "title": "T", "text": "Some text."}),
        "",
        "{not json",
        json.dumps({"id": "b", "text": "no _id"}),
        json.dumps({"_id": "a", "text": "again"}),
        json.dumps({"_id": "bad\nid", "text": "x"}),
        '{"_id": "c", "text": "lone \\ud800 surrogate"}',
        json.dumps({"_id": "d", "text": ""}),
        json.dumps({"_id": "e", "text": "Last.", "metadata": {"year": 1}}),
    ]
    path.write_text("\n".join(lines) + "\n")
    documents, reasons = read(path)
    assert [(d.document_id, d.chunks[0].title, d.chunks[0].text) for d in documents] == [
        ("a", "T", "Some text."),
        ("e", "", "Last."),
    ]
    assert documents[0].source == f"{path.as_uri()}#L1"
    assert sorted(reasons) == [f"corpus.jsonl:{n}" for n in (3, 4, 5, 6, 7, 8)]
    assert "not JSON" in reasons["corpus.jsonl:3"]
    assert "BEIR" in reasons["corpus.jsonl:4"]
    assert "twice" in reasons["corpus.jsonl:5"]


def test_ids_are_stable_and_content_decides_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "a.md"
    path.parent.mkdir()
    path.write_text("one")
    (first,), _ = read(path.parent)
    (again,), _ = read(path.parent)
    path.write_text("two")
    (changed,), _ = read(path.parent)
    assert first.document_id == again.document_id == changed.document_id == "docs/a.md"
    assert first.sha256 == again.sha256 != changed.sha256


def test_two_arguments_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for parent in ("x", "y"):
        (tmp_path / parent / "docs").mkdir(parents=True)
        (tmp_path / parent / "docs" / "a.md").write_text(parent)
    documents, reasons = read(tmp_path / "x" / "docs", tmp_path / "y" / "docs")
    assert [d.chunks[0].text for d in documents] == ["x"]
    assert "another argument" in reasons["docs/a.md"]


@pytest.mark.parametrize("name", ["a.html", "a.rst", "a.py", "A.MD"])
def test_every_format_gives_text_and_positions_in_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("alpha beta gamma\n")
    (document,), _ = read(path)
    (piece,) = document.chunks
    assert path.read_text()[piece.start : piece.end] == piece.text == "alpha beta gamma"


def test_metadata_and_exported_documents_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    passages = [
        {"text": "one", "title": "T", "char_end": 3, "metadata": {"year": 3, "score": 1.0, "ok": True}},
        {"text": "", "vector": [1, 0.5]},
    ]
    lines = [
        {"_id": "plain", "text": "Some text.", "metadata": {"year": 3, "tags": ["left", "out"], "none": None}},
        {"_id": "whole", "source": "s", "version": "1.2", "passages": passages},
        {"_id": "broken", "passages": [{"text": "x"}, {"text": 3}]},
        {"_id": "empty", "passages": []},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (plain, whole), reasons = read(path)
    assert (plain.document_id, plain.metadata) == ("plain", {"year": 3})
    assert (whole.document_id, whole.source, whole.metadata) == ("whole", "s", {})
    first, second = whole.chunks
    assert (first.text, first.title, first.start, first.end, first.vector) == ("one", "T", 0, 3, None)
    assert [type(value) for value in first.metadata.values()] == [int, float, bool]
    assert second.vector == (1.0, 0.5)
    assert "passages[1].text is of type int" in reasons["corpus.jsonl:3"]
    assert "no text" in reasons["corpus.jsonl:4"]
