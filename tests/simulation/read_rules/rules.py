"""Five ways to read: four that are used or proposed elsewhere, and Ostraka's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from services.quorum.clock import Version
from services.quorum.gtid import GtidSet
from tests.simulation.checker import rank
from tests.simulation.history import Hit
from tests.simulation.read_rules.gather import Answers, Ask, Gather
from tests.simulation.read_rules.shadow import Answer, ReadReplica, ReadRouter
from tests.simulation.searching import Searching

TOMBSTONE = -1
"""Ordinal of a look-up's hit that says: deleted at this version."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a search brought. `direct`: the first answer did, without a fallback."""

    hits: tuple[Hit, ...]
    direct: bool = True


Done = Callable[[Reply | None], None]
"""Called once; None when the rule could not answer."""


def best(query: int, k: int, hits: Iterable[Hit]) -> tuple[Hit, ...]:
    """The best k of some passages, each once."""
    ordered = sorted(set(hits), key=lambda hit: rank(query, hit.document_id, hit.ordinal, hit.content))
    return tuple(ordered[:k])


def newest(hits: Iterable[Hit]) -> list[Hit]:
    """Of each document only the passages of the highest version among `hits`."""
    kept = list(hits)
    versions: dict[str, Version] = {}
    for hit in kept:
        versions[hit.document_id] = max(hit.version, versions.get(hit.document_id, Version.ZERO))
    return [hit for hit in kept if hit.version == versions[hit.document_id]]


def _order(router: ReadRouter) -> list[str]:
    order = [voter.replica_id for voter in router.members.voters]
    router.timeline.random.shuffle(order)
    return order


def _search(query: int, k: int) -> Ask[Answer]:
    return lambda voter, reply: voter.on_plain_search(query, k, reply)


def _from_searches(
    router: ReadRouter,
    count: int,
    query: int,
    k: int,
    done: Done,
    join: Callable[[Sequence[tuple[Hit, ...]]], list[Hit]],
) -> None:
    def landed(answers: Answers[Answer] | None) -> None:
        found = None if answers is None else join([answer.hits for _, answer in answers])
        done(None if found is None else Reply(best(query, k, found)))

    Gather(router, [_search(query, k)] * count, _order(router), landed).begin()


def one_replica(router: ReadRouter, query: int, k: int, done: Done) -> None:
    """Whatever one voter finds."""
    _from_searches(router, 1, query, k, done, lambda lists: list(lists[0]))


def intersection(router: ReadRouter, query: int, k: int, done: Done) -> None:
    """Only what all of R voters found, in the same version."""

    def join(lists: Sequence[tuple[Hit, ...]]) -> list[Hit]:
        return list(set(lists[0]).intersection(*lists[1:]))

    _from_searches(router, router.members.read_quorum, query, k, done, join)


def union(router: ReadRouter, query: int, k: int, done: Done) -> None:
    """What any of R voters found; of a document the highest version among the hits; nothing is looked up."""

    def join(lists: Sequence[tuple[Hit, ...]]) -> list[Hit]:
        return newest(hit for hits in lists for hit in hits)

    _from_searches(router, router.members.read_quorum, query, k, done, join)


def digest_equality(router: ReadRouter, query: int, k: int, done: Done) -> None:
    """One search is right if R voters have equal digests; else R searches, and a look-up of each candidate by id.

    Candidates that R look-ups show replaced or deleted are shown as they are now or dropped. Nobody is asked for more
    than k candidates, and what is dropped is not filled up.
    """
    _DigestSearch(router, query, k, done).begin()


class _DigestSearch:
    def __init__(self, router: ReadRouter, query: int, k: int, done: Done) -> None:
        self._router, self._query, self._k, self._done = router, query, k, done
        self._needed = router.members.read_quorum

    def begin(self) -> None:
        """One search and R - 1 digests, at once."""

        def digest(voter: ReadReplica, reply: Callable[[Answer], None]) -> None:
            reply(Answer(voter.digest(), ()))

        asks = [_search(self._query, self._k), *[digest] * (self._needed - 1)]
        Gather(self._router, asks, _order(self._router), self._compare).begin()

    def _compare(self, answers: Answers[Answer] | None) -> None:
        if answers is None:
            self._done(None)
            return
        searched, first = answers[0]
        if len({answer.digest for _, answer in answers}) == 1:
            self._done(Reply(first.hits))
            return
        others = [name for name, _ in answers[1:]]
        spare = [name for name in _order(self._router) if name not in (searched, *others)]
        asks = [_search(self._query, self._k)] * (self._needed - 1)

        def landed(more: Answers[Answer] | None) -> None:
            if more is None:
                self._done(None)
            else:
                self._look_up([hit for answer in (first, *(answer for _, answer in more)) for hit in answer.hits])

        Gather(self._router, asks, [*others, *spare], landed).begin()

    def _look_up(self, candidates: Sequence[Hit]) -> None:
        asked = frozenset(hit.document_id for hit in candidates)

        def look_up(voter: ReadReplica, reply: Callable[[list[Hit]], None]) -> None:
            voter.on_lookup(asked, reply)

        def landed(answers: Answers[list[Hit]] | None) -> None:
            if answers is None:
                self._done(None)
                return
            current = newest([*candidates, *(hit for _, found in answers for hit in found)])
            live = [hit for hit in current if hit.ordinal != TOMBSTONE]
            self._done(Reply(best(self._query, self._k, live), direct=False))

        Gather(self._router, [look_up] * self._needed, _order(self._router), landed).begin()


def ostraka(router: ReadRouter, query: int, k: int, done: Done) -> None:
    """One view that contains every gtid which may have been acknowledged: the production `QuorumSearch`."""

    def landed(result: tuple[GtidSet, tuple[Hit, ...]] | None) -> None:
        again = any(query in voter.required for voter in router.voters.values())
        done(None if result is None else Reply(result[1], direct=not again))

    Searching(router, query, k, None, landed).begin()


Rule = Callable[[ReadRouter, int, int, Done], None]
RULES: dict[str, Rule] = {
    "one replica": one_replica,
    "intersection of R": intersection,
    "union of R": union,
    "digest equality": digest_equality,
    "Ostraka": ostraka,
}
OURS = "Ostraka"
