"""Batches of documents: within bounds, complete, heads last."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.router.packing import Document, Row, head_bytes, pack, row_bytes

ROWS_MAX, BYTES_MAX = 8, 2_000

documents = st.lists(
    st.builds(
        lambda sizes: [Row(ordinal, b"v" * 16, b"p" * size) for ordinal, size in enumerate(sizes)],
        st.lists(st.integers(0, 1_500), max_size=30),
    ),
    max_size=12,
).map(lambda rows: [Document(f"doc-{number}", tuple(each)) for number, each in enumerate(rows)])


@given(documents)
def test_every_row_travels_once_and_every_batch_keeps_its_bounds(given_documents: list[Document]) -> None:
    parcels = pack(given_documents, ROWS_MAX, BYTES_MAX)
    sent = [(name, row.ordinal) for parcel in parcels for name, row in parcel.passages]
    assert sorted(sent) == sorted((d.document_id, row.ordinal) for d in given_documents for row in d.rows)
    heads = [head for parcel in parcels for head in parcel.heads]
    assert sorted(heads) == sorted((d.document_id, len(d.rows)) for d in given_documents)
    for parcel in parcels:
        assert 1 <= parcel.rows <= ROWS_MAX
        size = sum(row_bytes(name, row) for name, row in parcel.passages)
        size += sum(head_bytes(name) for name, _ in parcel.heads)
        assert size == parcel.size <= BYTES_MAX


@given(documents)
def test_a_head_depends_on_every_other_batch_of_its_document(given_documents: list[Document]) -> None:
    parcels = pack(given_documents, ROWS_MAX, BYTES_MAX)
    for index, parcel in enumerate(parcels):
        assert all(earlier < index for earlier in parcel.depends)
        for name, _ in parcel.heads:
            carriers = {n for n, other in enumerate(parcels) if any(name == row[0] for row in other.passages)}
            assert carriers - {index} == set(parcel.depends) if parcel.depends else carriers <= {index}
        if parcel.depends:
            assert len(parcel.heads) == 1


def test_small_documents_share_a_batch() -> None:
    small = [Document(f"d{number}", (Row(0, b"", b"x"),)) for number in range(4)]
    assert len(pack(small, ROWS_MAX, BYTES_MAX)) == 1


def test_tombstones_are_heads_without_rows() -> None:
    (parcel,) = pack([Document("gone", ())], ROWS_MAX, BYTES_MAX)
    assert parcel.heads == [("gone", 0)]
    assert not parcel.passages
