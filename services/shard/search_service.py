"""What the ShardService answers to a search: one leg, whatever happens, as a result with a status."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.trace import Span

from observability import metrics, names, spans
from ostraka.v1 import passage_pb2, shard_pb2
from services.quorum.gtid import GtidSet
from services.quorum.status import ReplicaStatus
from services.runtime.clock import Clock
from services.runtime.deadline import Deadline
from services.shard import search
from services.shard.covering import NotCoveredError, covering, readable
from services.shard.damage import DamagedRowError, PartDamagedError
from services.shard.engine import Engine
from services.shard.filtering import FILTER_FAILURES
from services.shard.freshness import TooStaleError, fresh_enough
from services.shard.lexical_search import Scorer
from services.shard.lexical_view import lexical_parts
from services.shard.metadata_index import MetadataDamagedError
from services.shard.node import Node
from services.shard.search_pool import PoolFullError, SearchPool
from services.shard.store import StoreError
from services.shard.view import View
from services.shard.wire import set_to_wire, status_to_wire


class SearchService:
    """Searches this node's replicas."""

    def __init__(self, node: Node, pool: SearchPool, clock: Clock) -> None:
        self._node, self._pool, self._clock = node, pool, clock

    async def leg(
        self,
        request: shard_pb2.SearchShardsRequest,
        leg: shard_pb2.ShardSearch,
        require: GtidSet,
        task: search.SearchTask,
        deadline: Deadline,
    ) -> shard_pb2.ShardSearchResult:
        """One shard of a search, whatever happens, as a result with a status."""
        replica = self._node.replicas.get((request.collection, leg.shard))
        refusal, message = readable(replica)
        if refusal is not None or replica is None or replica.engine is None:
            missing = refusal or ReplicaStatus.UNKNOWN_REPLICA
            return shard_pb2.ShardSearchResult(shard=leg.shard, status=status_to_wire(missing), message=message)
        held = search.open_spans(leg.traceparents, leg.shard, replica.replica_id, request.leg_role)
        voting_epoch = replica.engine.core.voting_epoch
        result = shard_pb2.ShardSearchResult(shard=leg.shard, replica=replica.replica_id, voting_epoch=voting_epoch)
        repair = self._node.repairs.get((replica.collection, replica.shard))
        try:
            age_ms = await fresh_enough(
                replica, repair, self._clock, request.max_staleness_ms, deadline, refresh=request.refresh
            )
            if age_ms is not None:
                result.staleness_ms = age_ms
            view, result.waited = await covering(replica, repair, require, leg.holders, request.wait_ms, deadline)
            await self._search(replica.engine, view, task, deadline, held, result)
            replica.searches += len(result.results)
            if replica.canary is not None and _is_approximate(request):
                replica.canary.offer(task.queries, task.k)
            _count(request.collection, task, result)
        except TooStaleError as error:
            _fill_view(result, replica.engine.view)
            result.status, result.message = shard_pb2.REPLICA_STATUS_TOO_STALE, str(error)
        except NotCoveredError as error:
            _fill_view(result, replica.engine.view)
            result.status, result.message = shard_pb2.REPLICA_STATUS_NOT_COVERED, str(error)
        except PoolFullError as error:
            result.status, result.message = shard_pb2.REPLICA_STATUS_OVERLOADED, str(error)
        except (DamagedRowError, PartDamagedError, StoreError, search.ViewExpiredError, *FILTER_FAILURES) as error:
            result.status, result.message = shard_pb2.REPLICA_STATUS_FAILED, str(error)
        except BaseException as error:
            for span in held:
                spans.record_error(span, error)
            raise
        finally:
            for span in held:
                if result.status:  # otherwise the error above is the outcome
                    outcome = shard_pb2.ReplicaStatus.Name(result.status).removeprefix("REPLICA_STATUS_")
                    span.set_attribute(names.OUTCOME, outcome.lower())
                spans.end_span(span)
        return result

    async def _search(
        self,
        engine: Engine,
        view: View,
        task: search.SearchTask,
        deadline: Deadline,
        held: Sequence[Span],
        result: shard_pb2.ShardSearchResult,
    ) -> None:
        """Search `view`, once more on the newest when its rows were replaced, and fill `result`."""
        if engine.damaged:
            raise DamagedRowError(tuple(engine.damaged))

        def attempt(searched: View) -> View:
            matching = search.narrowed(searched, engine.readers, task, engine.filters)
            scorers: Sequence[Scorer] = ()
            if task.words is not None:
                scorers, result.statistics_age_ms = task.words.scorers(result.shard, lexical_parts(searched))
            result.results.extend(search.run(matching, engine.readers, task, engine.filters, scorers))
            result.rows_matching = matching.rows_live
            return searched

        def work(queue_wait_us: int) -> View:
            began = self._clock.monotonic_s()
            try:
                searched = attempt(view)
            except search.ViewExpiredError:
                searched = attempt(engine.view)
            result.queue_wait_us = queue_wait_us
            result.search_us = int((self._clock.monotonic_s() - began) * 1e6)
            return searched

        try:
            searched = await self._pool.run(work, deadline)
        except DamagedRowError as error:
            engine.note_damage(error.names)
            raise
        except search.ViewExpiredError:
            engine.ledger.doubt()  # of the newest view too: rows are missing
            raise
        except PartDamagedError as error:
            engine.ledger.add_part(error.part, str(error))
            raise
        except StoreError as error:
            engine.note_failure(error)
            raise
        except MetadataDamagedError as error:
            engine.mend_metadata(error.rids)
            raise
        search.describe(held, searched, task, result)
        _fill_view(result, searched)
        result.status = shard_pb2.REPLICA_STATUS_OK


def _fill_view(result: shard_pb2.ShardSearchResult, view: View) -> None:
    result.view.CopyFrom(set_to_wire(view.applied))
    result.index_epoch = view.index_epoch
    result.rows_live = view.rows_live
    result.rows_dead = view.rows_dead
    result.hlc_max = view.hlc_max


def _is_approximate(request: shard_pb2.SearchShardsRequest) -> bool:
    """Whether the search asked the index alone for the nearest of all rows: what the recall canary samples."""
    lexical = request.mode == passage_pb2.SEARCH_MODE_LEXICAL
    return not (request.exact or request.HasField("filter") or lexical)


def _count(collection: str, task: search.SearchTask, result: shard_pb2.ShardSearchResult) -> None:
    labels: metrics.Attributes = {"collection": collection, "shard": result.shard, "mode": search.mode_word(task.mode)}
    metrics.record(metrics.QUEUE_WAIT, result.queue_wait_us / 1e6, labels)
    metrics.record(metrics.SEARCH_DURATION, result.search_us / 1e6, labels)
    metrics.record(metrics.SEARCH_BATCH, len(result.results), labels)
