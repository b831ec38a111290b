"""When the delta becomes a segment, which segments are merged, and how one is built beside running traffic.

The policy is a pure function of a view. Building reads one view and never touches the writer; only publication does,
and rows that died meanwhile are dead in the published bitmap.

Every search scans the delta, so a flush writes the delta alone and is soon done, and a merge that takes long lets a
full delta be flushed between two of its chunks. Segments are merged as soon as one is not larger than RATIO times all
smaller ones together. So there are few of them, for each costs a search of its own, and a row is written again only
when what it lies in grows by half: O(log(rows / flush)) times in all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from observability.logs import logger
from services.runtime.config import ShardConfig
from services.shard import faiss_index, files, heap, segment, segment_build, tuning, view_search
from services.shard.cpu_budget import CpuBudget
from services.shard.delta import Delta
from services.shard.engine import Engine
from services.shard.faiss_index import Kind
from services.shard.lexical_view import lexical_sources
from services.shard.segment import FLAT
from services.shard.segment_build import Encoding
from services.shard.view import Part, View

RATIO = 2
SEGMENTS_MAX = 8
DEAD_SHARE_MAX = 0.2
"""A segment with a larger share of dead rows is written anew."""
RETRAIN_GROWTH = 2.0
"""A codec trained on fewer than 1 / RETRAIN_GROWTH of the rows is trained anew, where nobody else trains it."""
LONELY = 2.0
"""A segment whose settings were chosen in a view of so many times the rows that there are now is written anew."""
URGENT_FLUSHES = 2
"""With so many flushes waiting in the delta, a build no longer keeps to its budget: exact search pays more."""
TRAIN = ""
"""In place of a codec's name: train one on the rows themselves."""
_LOG = logger("shard")


@dataclass(frozen=True, slots=True)
class Sealing:
    """What to build: the rows to cover, the segments they replace, and the codec's short name, FLAT or TRAIN."""

    rids: NDArray[np.int64]
    replaced: tuple[str, ...]
    codec: str
    with_delta: bool = False
    """Whether rows of the delta are among them."""

    @property
    def trains(self) -> bool:
        return self.codec == TRAIN


@dataclass(frozen=True, slots=True)
class Shared:
    """The collection's codec, by short name; FLAT while there is none."""

    codec: str


def due(view: View, config: ShardConfig, shared: Shared | None = None) -> Sealing | None:
    """What should be built next for this view, or None. Pure; after finitely many it is None.

    `shared` None: nobody else trains, so a codec is trained here and found in the segments.
    """
    if shared is None and _retrain(view, config):
        return Sealing(view.live_rids(), _names(view.parts), TRAIN, with_delta=True)
    codec = _own_codec(view) if shared is None else shared.codec
    flushed = flush_due(view, config, codec)
    if flushed is not None:
        return flushed
    merged = _merged(view.parts)
    if merged:
        return _of(merged, codec)
    worn = [part for part in view.parts if part.dead > DEAD_SHARE_MAX * part.segment.rows]
    old = [part for part in view.parts if part.segment.manifest.codec != codec] if codec != FLAT else []
    alone = [part for part in view.parts if _lost_company(part, view.rows_live)]
    rewritten = worn or old or alone
    return _of([min(rewritten, key=_size)], codec) if rewritten else None


def flush_due(view: View, config: ShardConfig, codec: str) -> Sealing | None:
    """The delta as a segment of its own, if it is full. Pure."""
    if view.delta.live < config.delta_rows_flush:
        return None
    return Sealing(np.sort(view.delta.rids[view.delta.live_positions()]), (), codec, with_delta=True)


def _retrain(view: View, config: ShardConfig) -> bool:
    if view.rows_live < config.train_rows_min:
        return False
    basis = max((part.segment.manifest.trained_rows_basis for part in view.parts), default=0)
    waiting = view.delta.live >= config.delta_rows_flush or not basis
    sealed = bool(view.parts) or view.delta.live >= config.delta_rows_flush
    return waiting and sealed and view.rows_live > RETRAIN_GROWTH * basis


def _lost_company(part: Part, rows_live: int) -> bool:
    """Whether a part's effort was chosen among so many more rows that a search must look harder now."""
    manifest = part.segment.manifest
    return not manifest.flat and manifest.view_rows > LONELY * max(rows_live, part.segment.rows)


def _own_codec(view: View) -> str:
    """That of the most recently trained segment."""
    trained = [part.segment.manifest for part in view.parts if not part.segment.manifest.flat]
    return max(trained, key=lambda manifest: (manifest.trained_rows_basis, manifest.codec)).codec if trained else FLAT


def _merged(parts: Sequence[Part]) -> list[Part]:
    """The smallest parts, up to the last that is not larger than RATIO times those before it, and to a limit."""
    ascending = sorted(parts, key=_size)
    taken = len(ascending) - SEGMENTS_MAX + 1 if len(ascending) > SEGMENTS_MAX else 0
    smaller = 0
    for number, part in enumerate(ascending):
        if number and part.live <= RATIO * smaller:
            taken = max(taken, number + 1)
        smaller += part.live
    return ascending[:taken]


def _of(taken: Sequence[Part], codec: str) -> Sealing:
    return Sealing(np.sort(np.concatenate([part.live_rids() for part in taken])), _names(taken), codec)


def _size(part: Part) -> tuple[int, str]:
    return part.live, part.segment.name


def _names(parts: Sequence[Part]) -> tuple[str, ...]:
    return tuple(part.segment.name for part in parts)


def due_for(engine: Engine) -> Sealing | None:
    """`due` for the engine's newest view and the codec that it is to encode with."""
    return due(engine.view, engine.config, _shared(engine))


def _shared(engine: Engine) -> Shared | None:
    if engine.kind is Kind.FLAT:
        return Shared(FLAT)
    if engine.codecs is None:
        return None
    codec = engine.codecs.current()
    return Shared(FLAT if codec is None else codec.short)


def build_and_publish(engine: Engine, sealing: Sealing, budget: CpuBudget | None = None) -> int:
    """Build one segment in the calling thread and publish it; returns how many were published, for a delta that fills
    up during a merge is flushed before the merge goes on.

    Raises OSError, StoreError, SegmentDamagedError (of a segment that was to be merged), StoppedError.
    """
    try:
        return _build_and_publish(engine, sealing, budget)
    finally:
        heap.give_back()  # the view that was built from is let go of by now, and the segments replaced with it


def _build_and_publish(engine: Engine, sealing: Sealing, budget: CpuBudget | None) -> int:
    view = engine.view
    parts = [part for part in view.parts if part.segment.name in sealing.replaced]
    rids = np.intersect1d(sealing.rids, view.live_rids())
    if not len(rids):
        _drop(engine, sealing.replaced)
        return 0
    urgent_rows = URGENT_FLUSHES * engine.config.delta_rows_flush
    published = 0

    def pause() -> None:
        nonlocal published
        if budget is not None:
            budget.pause(urgent=engine.view.delta.live > urgent_rows)
        if sealing.with_delta:  # rows that this build covers are not flushed under its hands
            return
        flushed = flush_due(engine.view, engine.config, sealing.codec)
        if flushed is not None:
            published += _build_and_publish(engine, flushed, budget)

    if budget is not None:
        budget.begin()
    for part in parts:
        segment.verify_vectors(part.segment, pause)
    name = _new_name(sealing)
    files.make_directory(engine.segments_dir)
    try:
        encoding = _encoding(engine, view, sealing)
        rest = _rest(view, sealing)
        plan = segment_build.Plan(
            name=name,
            rids=rids,
            dim=engine.dim,
            encoding=encoding,
            recall_target=engine.config.recall_target,
            analyzer=engine.lexical.analyzer.name,
            lexical=lexical_sources(view),
            surroundings=surroundings(rest, len(rids), encoding.codec),
            rows_around=rest.rows_live,
        )
        manifest, building = segment_build.build(plan, _vectors_of(view, engine.dim), engine.segments_dir, pause)
        final = engine.segments_dir / name
        files.remove_tree(final)  # of an attempt that was written but could not be published
        sha256 = segment.publish(building, final, manifest)
    except BaseException:
        files.remove_tree(engine.segments_dir / f"{name}.tmp")
        raise
    heap.give_back()  # an index read into pages that the build has used would keep the unused ends of its lists
    engine.seal(segment.map_segment(final, manifest), sha256, sealing.replaced).result()
    _LOG.info(
        "segment published",
        replica=engine.replica_id,
        segment=name,
        rows=manifest.rows,
        index_kind=manifest.factory,
        codec=manifest.codec,
        nprobe=manifest.nprobe,
        candidates=manifest.candidates_10,
        recall=manifest.recall,
        replaced=list(sealing.replaced),
    )
    return published + 1


def _rest(view: View, sealing: Sealing) -> View:
    """The view without the rows that are sealed."""
    kept = tuple(part for part in view.parts if part.segment.name not in sealing.replaced)
    delta = Delta.empty(view.delta.vectors.shape[1]) if sealing.with_delta else view.delta
    return replace(view, parts=kept, delta=delta)


def surroundings(rest: View, rows: int, codec: bytes | None) -> tuning.Surroundings | None:
    """`rest` as seen by a segment of so many rows that will stand beside it; None if nothing lives there."""
    if not rest.rows_live:
        return None
    short = "" if codec is None else faiss_index.codec_id(codec)
    larger = [part for part in rest.parts if part.segment.manifest.codec == short and part.live > rows]
    effort = max(larger, key=_size).segment.manifest.nprobe if larger else 0

    def best(queries: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = np.full((len(queries), 10), -np.inf, dtype=np.float32)
        for row, found in enumerate(view_search.search(rest, queries, 10, exact=False)):
            held = found.scores[:10]
            scores[row, : len(held)] = held
        return scores

    return tuning.Surroundings(best, effort)


def _drop(engine: Engine, names: Sequence[str]) -> None:
    """Take segments away in which nothing lives any more."""
    for name in names:
        engine.replace_part(name, lambda view, name=name: view.without_part(name)).result()  # type: ignore[misc]


def _encoding(engine: Engine, view: View, sealing: Sealing) -> Encoding:
    """The codec that was asked for; where it has gone meanwhile, none: what is flat is encoded when there is one."""
    if sealing.trains:
        return Encoding(kind=engine.kind)
    codec = None if engine.codecs is None else engine.codecs.current()
    if codec is not None:  # perhaps a later one than when it was decided, which is as good
        return Encoding(False, codec.data, codec.record.trained_rows, codec.record.basis_rows)
    owner = next((part.segment for part in view.parts if part.segment.manifest.codec == sealing.codec), None)
    if owner is None or owner.manifest.flat:
        return Encoding(flat=True)
    return Encoding(False, owner.codec(), owner.manifest.trained_rows, owner.manifest.trained_rows_basis)


def _new_name(sealing: Sealing) -> str:
    """A name no earlier segment of this replica had: rows are never sealed twice the same way from the same ones."""
    content = sealing.rids.tobytes() + "|".join((*sealing.replaced, sealing.codec)).encode()
    return "segment-" + hashlib.blake2b(content, digest_size=8).hexdigest()


def _vectors_of(view: View, dim: int) -> segment_build.Reader:
    """Vectors from where the view has them: segments' mapped files and the delta. Never SQLite."""
    order = np.argsort(view.delta.rids, kind="stable")

    def read(rids: NDArray[np.int64]) -> NDArray[np.float16]:
        vectors = np.empty((len(rids), dim), dtype=np.float16)
        found = 0
        for part in view.parts:
            inside = part.segment.holds(rids)
            vectors[inside] = part.segment.vectors[part.segment.positions(rids[inside])]
            found += int(inside.sum())
        at = np.searchsorted(view.delta.rids, rids, sorter=order)
        at = order[np.minimum(at, max(0, len(order) - 1))] if len(order) else np.zeros(len(rids), dtype=np.int64)
        inside = view.delta.rids[at] == rids if len(order) else np.zeros(len(rids), dtype=np.bool_)
        vectors[inside] = view.delta.vectors[at[inside]]
        assert found + int(inside.sum()) >= len(rids), "every live row of a view is in a part or in the delta"
        return vectors

    return read
