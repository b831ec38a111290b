"""The queries of one request as BM25 needs them: analysed once, weighed by the statistics of the whole collection.

Of the searched shard the statistics are those of the very view that is searched, without its filter; of the others
what this node knows now, looked up once per request however many shards it searches.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.shard.analyzer import QueryTerms
from services.shard.lexical_part import LexicalPart
from services.shard.lexical_search import Lexical, Scorer, scorer
from services.shard.lexical_view import lexical_parts
from services.shard.statistics import Corpus, corpus
from services.shard.statistics_exchange import StatisticsExchange


class LexicalQueries:
    """Shared by the legs of one request, which may run at the same time."""

    def __init__(self, texts: Sequence[str], collection: str, lexical: Lexical, known: StatisticsExchange) -> None:
        self.lexical = lexical
        self.queries: list[QueryTerms] = [lexical.analyzer.query(text) for text in texts]
        self._collection = collection
        self._known = known
        self._looked_up: dict[int, list[Corpus] | None] = {}

    def scorers(self, own: int, parts: Sequence[LexicalPart]) -> tuple[list[Scorer], int]:
        """(a scorer for each query, age in ms of the oldest statistics used) for a search of shard `own`, whose
        unfiltered view has these parts."""
        found = [corpus(parts, query.terms) for query in self.queries]
        age_ms = 0
        for shard in self._known.others(self._collection, own):
            age_ms = max(age_ms, self._known.heard_age_ms((self._collection, shard)))
            other = self._of(shard)
            if other is not None:
                found = [mine.plus(theirs) for mine, theirs in zip(found, other, strict=True)]
        return [scorer(query, sums, self.lexical) for query, sums in zip(self.queries, found, strict=True)], age_ms

    def _of(self, shard: int) -> list[Corpus] | None:
        """What is known of another shard, for each query; None: nothing."""
        if shard not in self._looked_up:
            self._looked_up[shard] = self._look_up(shard)
        return self._looked_up[shard]

    def _look_up(self, shard: int) -> list[Corpus] | None:
        replica = self._known.local((self._collection, shard))
        if replica is not None and replica.engine is not None:
            parts = lexical_parts(replica.engine.view)
            return [corpus(parts, query.terms) for query in self.queries]
        heard = self._known.heard.get((self._collection, shard))
        return None if heard is None else [heard.vocabulary.of(query.terms) for query in self.queries]
