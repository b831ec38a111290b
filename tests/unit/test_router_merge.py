"""Merging shard hits, compared with the obvious way of doing it."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from services.quorum.clock import Version
from services.router.merge import merge


@dataclass(frozen=True)
class FakeHit:
    document_id: str
    ordinal: int
    score: float
    version: Version


hits = st.builds(
    FakeHit,
    st.sampled_from(["a", "b", "c", "d"]),
    st.integers(0, 5),
    st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]),
    st.builds(Version, st.integers(1, 3), st.integers(1, 2)),
)


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(hits, max_size=8)), max_size=4), st.integers(1, 12))
def test_newest_version_of_each_document_and_no_other(lists: list[tuple[int, list[FakeHit]]], k: int) -> None:
    merged = merge(lists, k)
    every = [hit for _, shard_hits in lists for hit in shard_hits]
    newest = {name: max(h.version for h in every if h.document_id == name) for name in {h.document_id for h in every}}
    wanted = {(h.document_id, h.ordinal) for h in every if h.version == newest[h.document_id]}
    assert len(merged) == min(k, len(wanted))
    assert all(hit.version == newest[hit.document_id] for _, hit in merged)
    assert len({(hit.document_id, hit.ordinal) for _, hit in merged}) == len(merged)
    keys = [(-hit.score, hit.document_id, hit.ordinal) for _, hit in merged]
    assert keys == sorted(keys)


@given(st.lists(st.lists(hits, max_size=8), max_size=3))
def test_the_order_in_which_shards_answer_does_not_matter(lists: list[list[FakeHit]]) -> None:
    numbered = list(enumerate(lists))
    one, other = merge(numbered, 20), merge(numbered[::-1], 20)
    assert [(hit.document_id, hit.ordinal, hit.score) for _, hit in one] == [
        (hit.document_id, hit.ordinal, hit.score) for _, hit in other
    ]
