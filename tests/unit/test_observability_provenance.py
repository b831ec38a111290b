"""The provenance attribute is valid JSON within its budget, used passages first."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.provenance import BUDGET_BYTES, digest, documents_json, entry, parse_documents, version_text
from ostraka.v1 import passage_pb2 as pb


def provenance(rank: int, *, in_prompt: bool = False, cited: bool = False, source: str = "") -> pb.Provenance:
    return pb.Provenance(
        passage_id=f"doc#{rank}", document_id="doc", source=source or f"file:///{rank}", version=pb.Version(hlc=rank),
        shard=1, replica="ab" * 16, index_epoch="flat-01020304", dense_score=0.1 * rank, dense_rank=rank, rank=rank,
        lexical_score=1.5, lexical_rank=3, score=0.2 * rank, in_prompt=in_prompt, cited=cited,
        content_sha256=bytes(range(32)),
    )  # fmt: skip


def test_everything_fits_by_default() -> None:
    given_ = [provenance(rank) for rank in range(1, 11)]
    documents = parse_documents(documents_json(given_))
    assert [dict(e) for e in documents.entries] == [entry(p) for p in given_]
    assert (documents.truncated, documents.total, documents.digest) == (False, 10, "")


def test_an_entry_says_where_a_passage_came_from() -> None:
    assert entry(provenance(2, in_prompt=True)) == {
        "id": "doc#2",
        "score": 0.400000006,
        "metadata": {
            "rank": 2, "dense_score": 0.200000003, "dense_rank": 2, "lexical_score": 1.5, "lexical_rank": 3,
            "source": "file:///2", "version": "0000000000000002-0000000000000000",
            "shard": 1, "replica": "ab" * 16, "index_epoch": "flat-01020304", "index_part": "", "index_kind": "",
            "content_sha256": "0001020304050607", "in_prompt": True, "cited": False,
        },
    }  # fmt: skip


def test_used_passages_come_first_and_survive_the_cut() -> None:
    many = [provenance(rank) for rank in range(1, 200)]
    many += [provenance(200, in_prompt=True), provenance(201, cited=True)]
    text = documents_json(many)
    assert len(text.encode()) <= BUDGET_BYTES
    documents = parse_documents(text)
    assert [e["id"] for e in documents.entries[:4]] == ["doc#200", "doc#201", "doc#1", "doc#2"]
    assert (documents.truncated, documents.total, documents.digest) == (True, 201, digest(many))
    assert 20 < len(documents.entries) < 201


def test_the_digest_tells_lists_apart() -> None:
    assert digest([provenance(1)]) != digest([provenance(1, cited=True)])
    assert digest([provenance(1), provenance(2)]) == digest([provenance(2), provenance(1)])


@given(
    st.lists(st.tuples(st.booleans(), st.text(max_size=300)), max_size=30),
    st.integers(min_value=100, max_value=5_000),
)
def test_always_valid_json_within_the_budget(rows: list[tuple[bool, str]], budget: int) -> None:
    made = [provenance(rank, cited=cited, source=source) for rank, (cited, source) in enumerate(rows, start=1)]
    text = documents_json(made, budget)
    assert len(text.encode()) <= budget
    documents = parse_documents(text)
    assert documents.total == len(rows)
    assert documents.truncated is (len(documents.entries) < len(rows))


def test_nothing_retrieved_is_an_empty_list() -> None:
    assert documents_json([]) == "[]"
    assert parse_documents("[]").total == 0


def test_numbers_that_json_cannot_say() -> None:
    bad = provenance(1)
    bad.score = bad.dense_score = float("nan")
    (told,) = json.loads(documents_json([bad]))
    assert told["score"] is None
    assert told["metadata"]["dense_score"] is None


def test_refusals() -> None:
    with pytest.raises(ValueError, match="cannot hold even"):
        documents_json([provenance(1)], 10)
    for text in ("{", "{}", "[1]"):
        with pytest.raises(ValueError):
            parse_documents(text)


def test_versions_as_text_sort_like_versions() -> None:
    versions = [pb.Version(hlc=h, source=s) for h, s in ((1, 2**63), (2, 0), (2**60, 1))]
    texts = [version_text(version) for version in versions]
    assert texts == sorted(texts)
