"""Pages of several shards merged: ordered, complete, and cut where a shard may know more; tokens that say where."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostraka.v1 import passage_pb2, router_pb2, shard_pb2
from services.quorum.members import Members, ReplicaRef
from services.router import page_token
from services.router.catalogue import Catalogue, Collection, Model
from services.router.list_request import delete_plan, export_plan, list_plan
from services.router.listing import merged
from services.router.page_token import PageTokenError
from services.runtime.config import RouterConfig
from services.runtime.errors import InvalidArgument

IDS = st.text(min_size=1, max_size=4).filter(lambda text: text.isprintable())


def filter_on(year: int) -> passage_pb2.Filter:
    value = passage_pb2.MetadataValue(integer=year)
    return passage_pb2.Filter(equals=passage_pb2.Equals(field="year", value=value))


def catalogue() -> Catalogue:
    members = {0: Members(1, (ReplicaRef("r", "n"),), 1, 1)}
    return Catalogue({"docs": Collection("docs", 4, Model("m"), members, [0], metadata={"year": "integer"})})


def answer(documents: list[str], after: str, limit: int) -> shard_pb2.ListShardDocumentsResponse:
    """What a shard with these documents answers."""
    behind = [document_id for document_id in sorted(documents, key=str.encode) if document_id.encode() > after.encode()]
    return shard_pb2.ListShardDocumentsResponse(
        documents=[
            shard_pb2.ListedDocument(head=shard_pb2.HeadRow(document_id=document_id, passages=1))
            for document_id in behind[:limit]
        ],
        more=len(behind) > limit,
    )


@given(
    shards=st.lists(st.sets(IDS, max_size=12), min_size=1, max_size=4),
    size=st.integers(1, 7),
    cuts=st.lists(st.integers(1, 7), min_size=4, max_size=4),
)
def test_pages_hold_every_document_once_in_order(shards: list[set[str]], size: int, cuts: list[int]) -> None:
    held: list[list[str]] = []
    taken: set[str] = set()
    for shard in shards:  # a document lives in one shard
        held.append(sorted(shard - taken))
        taken |= shard
    found: list[str] = []
    more = True
    while more:
        after = found[-1] if found else ""
        # A shard may send fewer than asked for, because of their size.
        replies = {n: answer(ids, after, min(size, cuts[n])) for n, ids in enumerate(held)}
        page, more = merged(replies, size)
        assert len(page) <= size
        assert page or not more, "a page that is not the last has a document"
        assert all(document.head.document_id in held[shard] for shard, document in page)
        found += [document.head.document_id for _, document in page]
    assert found == sorted(taken, key=str.encode)


@given(last=IDS, wanted=st.one_of(st.none(), st.integers(0, 3).map(filter_on)))
def test_a_token_names_the_last_document_of_its_listing_only(last: str, wanted: passage_pb2.Filter | None) -> None:
    token = page_token.encode("docs", wanted, last)
    assert page_token.decode(token, "docs", wanted) == last
    assert page_token.decode("", "docs", wanted) == ""
    with pytest.raises(PageTokenError, match="another collection"):
        page_token.decode(token, "other", wanted)
    with pytest.raises(PageTokenError, match="another collection or filter"):
        page_token.decode(token, "docs", filter_on(99))


@given(
    last=IDS,
    place=st.integers(0, 100),
    letter=st.sampled_from("AZaz09-_=+/ é"),
)
def test_a_changed_token_is_refused(last: str, place: int, letter: str) -> None:
    token = page_token.encode("docs", None, last)
    place %= len(token)
    changed = token[:place] + letter + token[place + 1 :]
    if changed != token:
        try:
            assert page_token.decode(changed, "docs", None) == last, "bits behind the last byte mean nothing"
        except PageTokenError:
            return


def test_a_token_of_the_next_version_is_named_as_such() -> None:
    body = bytes([2]) + page_token._digest(b"docs\0") + b"a"
    token = base64.urlsafe_b64encode(body + page_token._digest(body)).decode().rstrip("=")
    with pytest.raises(PageTokenError, match="version 2"):
        page_token.decode(token, "docs", None)


def test_plans() -> None:
    limits = RouterConfig()
    plan = list_plan(router_pb2.ListDocumentsRequest(collection="docs", filter=filter_on(1)), catalogue())
    assert (plan.size, plan.after, plan.filter) == (100, "", filter_on(1))
    token = page_token.encode("docs", filter_on(1), "x")
    request = router_pb2.ListDocumentsRequest(collection="docs", filter=filter_on(1), page_token=token, page_size=1_000)
    assert list_plan(request, catalogue()).after == "x"
    assert export_plan(router_pb2.ExportRequest(collection="docs"), catalogue()).filter is None
    by_source = delete_plan(router_pb2.DeleteRequest(collection="docs", source="s"), catalogue(), limits)
    assert by_source.filter is not None
    assert by_source.filter.equals.field == "source"
    many = router_pb2.DeleteRequest(collection="docs", document_ids=[str(n) for n in range(257)])
    with pytest.raises(InvalidArgument, match="257") as caught:
        delete_plan(many, catalogue(), limits)
    assert caught.value.field == "document_ids"
