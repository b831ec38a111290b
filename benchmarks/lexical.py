"""Lexical search of one shard, in process, beside `bm25s` in the same run: speed, and equal quality.

    python -m benchmarks.lexical [--queries 500] [--out reports/lexical.json]

All sysdocs texts in two shards of 57,181 passages: built from deltas of 8,192 rows, merged into one segment, searched
with the questions of CoSQA (web queries about code) and the claims of SciFact (long sentences), one at a time, with
the statistics of both shards. Then the quality of SciFact and CoSQA by the engine and by `bm25s`, both with the same
terms. Exits 1 when the p95 of a shard exceeds P95_MS_MAX or a result differs from the reference.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import bm25s
import numpy as np
import numpy.typing as npt

from benchmarks.datasets import DataAbsentError, Document, Judged, cosqa, scifact, sysdocs_texts
from benchmarks.measures import ndcg
from services.runtime.config import LexicalConfig
from services.shard import alive as bits
from services.shard import lexical_search, lexical_segment, statistics
from services.shard.lexical_delta import LexicalDelta
from services.shard.lexical_part import LexicalPart
from services.shard.lexical_search import Scorer, lexical_of
from services.shard.lexical_segment import LexicalSource
from services.shard.statistics import Corpus

P95_MS_MAX = 10.0
SCORE_TOLERANCE = 1e-4
K = 10
DELTA_ROWS = 8_192
SHARDS = 2
LEXICAL = lexical_of(LexicalConfig())


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard's measurements."""

    passages: int
    postings: int
    terms: int
    analyse_s: float
    build_s: float
    """Of all deltas and their segments."""
    merge_s: float
    file_bytes: int
    anonymous_bytes: int
    """Growth while the merged segment is open and searched."""
    statistics_ms: float
    """Counting all terms of its live rows, as the exchange between nodes does."""


@dataclass(frozen=True, slots=True)
class Speed:
    """One set of questions on one shard; times in ms."""

    questions: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    delta_p95_ms: float
    """The same questions on 8,192 rows that no segment holds yet."""
    dead_p95_ms: float
    """The same questions with 20 % of the rows dead."""
    reference_p50_ms: float
    reference_p95_ms: float
    postings_mean: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Against `bm25s` over the same terms and passages."""

    corpus: str
    queries: int
    score_difference_max: float
    same_top_10: float
    """Share of queries whose ten best have the same scores, so that only equal ones may have changed places."""
    ndcg_at_10: float | None
    reference_ndcg_at_10: float | None


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def delta_part(delta: LexicalDelta, first: int) -> LexicalPart:
    rows = len(delta.lengths)
    rids = np.arange(first, first + rows, dtype=np.int64)
    return LexicalPart(0, delta.runs, delta.lengths, rids, bits.from_mask(np.ones(rows, dtype=np.bool_)), rows)


def segment_part(path: Path, rids: npt.NDArray[np.int64]) -> LexicalPart:
    opened = lexical_segment.open_lexical(path)
    alive = bits.from_mask(np.ones(len(rids), dtype=np.bool_))
    order = np.argsort(rids, kind="stable")
    return LexicalPart(1, (opened.postings,), opened.lengths, rids, alive, len(rids), order)


def with_dead(part: LexicalPart, share: float) -> LexicalPart:
    mask = np.random.default_rng(1).random(part.rows) >= share
    alive, live = bits.from_mask(mask), int(mask.sum())
    return LexicalPart(part.number, part.runs, part.lengths, part.rids, alive, live, part.order)


def build(texts: Sequence[str], directory: Path) -> tuple[Shard, LexicalPart, LexicalPart]:
    """(figures, the merged segment in a shuffled order, a full delta) of these passages."""
    began_s = time.perf_counter()
    rows = [LEXICAL.analyzer.row(text) for text in texts]
    analyse_s = time.perf_counter() - began_s
    parts: list[LexicalPart] = []
    began_s = time.perf_counter()
    for number, start in enumerate(range(0, len(rows), DELTA_ROWS)):
        delta = LexicalDelta.empty()
        for cut in range(start, min(start + DELTA_ROWS, len(rows)), 256):
            delta = delta.plus(rows[cut : min(cut + 256, start + DELTA_ROWS)])
        part = delta_part(delta, start)
        path = directory / f"{number}.bin"
        lexical_segment.write(path, part.rids, [_source(part)], LEXICAL.analyzer.name)
        parts.append(segment_part(path, part.rids))
    build_s = time.perf_counter() - began_s
    full = delta_part(LexicalDelta.empty().plus(rows[:DELTA_ROWS]), 0)
    del rows
    shuffled = np.random.default_rng(0).permutation(len(texts)).astype(np.int64)
    merged = directory / "merged.bin"
    began_s = time.perf_counter()
    lexical_segment.write(merged, shuffled, [_source(part) for part in parts], LEXICAL.analyzer.name)
    merge_s = time.perf_counter() - began_s
    del parts
    before = anonymous_bytes()
    whole = segment_part(merged, shuffled)
    scorers = scorers_of(["how to read a file line by line", "memory allocation of a process"], [[whole]])
    for scorer in scorers[0]:
        lexical_search.search([whole], scorer, K)
    grown = anonymous_bytes() - before
    began_s = time.perf_counter()
    statistics.vocabulary([whole])
    statistics_s = time.perf_counter() - began_s
    (run,) = whole.runs
    shard = Shard(
        passages=whole.rows,
        postings=run.size,
        terms=len(run.terms),
        analyse_s=round(analyse_s, 2),
        build_s=round(build_s, 2),
        merge_s=round(merge_s, 2),
        file_bytes=merged.stat().st_size,
        anonymous_bytes=max(0, grown),
        statistics_ms=round(statistics_s * 1e3, 1),
    )
    return shard, whole, full


def _source(part: LexicalPart) -> LexicalSource:
    return LexicalSource(part.runs, part.lengths, part.rids)


def scorers_of(texts: Sequence[str], shards: Sequence[Sequence[LexicalPart]]) -> list[list[Scorer]]:
    """For each shard a scorer of each query, with the statistics of all."""
    queries = [LEXICAL.analyzer.query(text) for text in texts]
    sums: list[Corpus] = []
    for query in queries:
        each = [statistics.corpus(parts, query.terms) for parts in shards]
        whole = each[0]
        for other in each[1:]:
            whole = whole.plus(other)
        sums.append(whole)
    scorers = [lexical_search.scorer(query, corpus, LEXICAL) for query, corpus in zip(queries, sums, strict=True)]
    return [scorers for _ in shards]


def timed(calls: Sequence[Callable[[], object]]) -> npt.NDArray[np.float64]:
    """Milliseconds of each call, after one round to warm up."""
    for call in calls[:20]:
        call()
    found = np.empty(len(calls))
    for number, call in enumerate(calls):
        began_s = time.perf_counter()
        call()
        found[number] = (time.perf_counter() - began_s) * 1e3
    return found


def measure(
    name: str, texts: Sequence[str], shards: Sequence[Sequence[LexicalPart]], full: LexicalPart, reference: bm25s.BM25
) -> Speed:
    """Ask everything of the first shard, analysis of the question and look-up of statistics included."""
    (part,) = shards[0]
    dead = with_dead(part, 0.2)

    def ask(text: str, kept: LexicalPart) -> object:
        own = replace(kept)  # as a request makes it, without the mask of the one before
        query = LEXICAL.analyzer.query(text)
        corpus = statistics.corpus([own], query.terms)
        for other in shards[1:]:
            corpus = corpus.plus(statistics.corpus(other, query.terms))
        return lexical_search.search([own], lexical_search.scorer(query, corpus, LEXICAL), K)

    sealed = timed([lambda text=text: ask(text, part) for text in texts])  # type: ignore[misc]
    fresh = timed([lambda text=text: ask(text, full) for text in texts])  # type: ignore[misc]
    worn = timed([lambda text=text: ask(text, dead) for text in texts])  # type: ignore[misc]
    tokens = [terms_of(text) for text in texts]
    known = [[term for term in query if term in reference.vocab_dict] for query in tokens]
    theirs = timed([lambda query=query: best_of(reference, query) for query in known if query])  # type: ignore[misc]
    counts = []
    for text in texts:
        starts, ends = part.runs[0].find(LEXICAL.analyzer.query(text).terms)
        counts.append(int((ends - starts).sum()))
    return Speed(
        questions=name,
        p50_ms=_at(sealed, 50),
        p95_ms=_at(sealed, 95),
        p99_ms=_at(sealed, 99),
        delta_p95_ms=_at(fresh, 95),
        dead_p95_ms=_at(worn, 95),
        reference_p50_ms=_at(theirs, 50),
        reference_p95_ms=_at(theirs, 95),
        postings_mean=round(float(np.mean(counts)), 0),
    )


def _at(values: npt.NDArray[np.float64], percentile: float) -> float:
    return round(float(np.percentile(values, percentile)), 3)


def terms_of(text: str) -> list[str]:
    """The analyzer's terms, in the form that `bm25s` takes."""
    return [f"{term:016x}" for term in LEXICAL.analyzer.text(text)]


def referenced(texts: Sequence[str]) -> bm25s.BM25:
    """`bm25s` with the same formula, constants and terms, in float64."""
    index = bm25s.BM25(method="lucene", k1=LEXICAL.k1, b=LEXICAL.b, dtype="float64")
    index.index([terms_of(text) for text in texts], show_progress=False)
    return index


def best_of(index: bm25s.BM25, query: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(rows, scores) of the reference's best K."""
    rows, scores = index.retrieve([list(query)], k=K, show_progress=False)
    return rows[0], scores[0]


def agreement(
    name: str, texts: Sequence[str], queries: Sequence[str], shards: Sequence[LexicalPart], data: Judged | None
) -> Agreement:
    """Ten best of the parts together (rids are rows of `texts`) against the reference's."""
    index = referenced(texts)
    scorers = scorers_of(queries, [[part] for part in shards])[0]
    differences, same = [0.0], 0
    ours: list[list[int]] = []
    theirs: list[list[int]] = []
    for text, scorer in zip(queries, scorers, strict=True):
        found = lexical_search.search(shards, scorer, K)
        order = np.lexsort((found.rids, -found.scores))[:K]
        rows, scores = found.rids[order], found.scores[order]
        known = [term for term in terms_of(text) if term in index.vocab_dict]
        expected_rows, expected = best_of(index, known) if known else (np.empty(0, np.int64), np.empty(0))
        positive = expected > 0
        ours.append(rows.tolist())
        theirs.append(expected_rows[positive].tolist())
        equal = len(scores) == int(positive.sum())
        if equal and len(scores):
            differences.append(float(np.abs(scores - expected[positive]).max()))
            equal = differences[-1] <= SCORE_TOLERANCE
        same += equal
    return Agreement(
        corpus=name,
        queries=len(queries),
        score_difference_max=max(differences),
        same_top_10=same / len(queries),
        ndcg_at_10=_mean(data, ours) if data else None,
        reference_ndcg_at_10=_mean(data, theirs) if data else None,
    )


def _mean(data: Judged, ranked: Sequence[Sequence[int]]) -> float:
    ids = [document.document_id for document in data.corpus]
    values = [
        ndcg([ids[row] for row in rows], data.judgements[query_id], K)
        for (query_id, _), rows in zip(data.queries, ranked, strict=True)
    ]
    return round(sum(values) / len(values), 4)


def judged(name: str, data: Judged, directory: Path) -> Agreement:
    """Quality of one judged corpus, half of it in a segment and half in the delta."""
    texts = [document.embedded_text for document in data.corpus]
    rows = [LEXICAL.analyzer.row(text) for text in texts]
    half = len(texts) // 2
    path = directory / f"{name}.bin"
    first = delta_part(LexicalDelta.empty().plus(rows[:half]), 0)
    lexical_segment.write(path, first.rids, [_source(first)], LEXICAL.analyzer.name)
    parts = [delta_part(LexicalDelta.empty().plus(rows[half:]), half), segment_part(path, first.rids)]
    queries = [text for _, text in data.queries]
    # Two parts of one shard are given as two shards here; their statistics add up to the same.
    return agreement(name, texts, queries, parts, data)


def run(queries_max: int, out: Path) -> int:
    """Measure, print, write; returns the exit code."""
    try:
        documents: Sequence[Document] = sysdocs_texts()
        claims, code = scifact(), cosqa()
    except DataAbsentError as absent:
        print(f"benchmarks.lexical: {absent}", file=sys.stderr)
        return 2
    asked = {
        "CoSQA questions": [text for _, text in code.queries][:queries_max],
        "SciFact claims": [text for _, text in claims.queries][:queries_max],
    }
    texts = [document.embedded_text for document in documents]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        built = []
        for number in range(SHARDS):
            (directory / str(number)).mkdir()
            built.append(build(texts[number::SHARDS], directory / str(number)))
        shards = [[whole] for _, whole, _ in built]
        reference = referenced(texts[0::SHARDS])
        speeds = [measure(label, lines, shards, built[0][2], reference) for label, lines in asked.items()]
        del reference
        globally = [
            LexicalPart(part.number, part.runs, part.lengths, part.rids * SHARDS + number, part.alive, part.live)
            for number, (part,) in enumerate(shards)
        ]
        agreements = [
            agreement("sysdocs", texts, [line for lines in asked.values() for line in lines], globally, None),
            judged("SciFact", claims, directory),
            judged("CoSQA", code, directory),
        ]
        figures = [figure for figure, _, _ in built]
    report = {
        "shards": [asdict(figure) for figure in figures],
        "speed": [asdict(speed) for speed in speeds],
        "agreement": [asdict(found) for found in agreements],
        "limits": {"p95_ms": P95_MS_MAX, "score_difference": SCORE_TOLERANCE},
    }
    print_tables(figures, speeds, agreements)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    slow = [speed for speed in speeds if max(speed.p95_ms, speed.dead_p95_ms, speed.delta_p95_ms) > P95_MS_MAX]
    other = [found for found in agreements if found.same_top_10 < 1]
    return 1 if slow or other else 0


def print_tables(figures: Sequence[Shard], speeds: Sequence[Speed], agreements: Sequence[Agreement]) -> None:
    """What a reader wants to see."""
    for number, figure in enumerate(figures):
        print(
            f"shard {number}: {figure.passages:,} passages, {figure.postings:,} postings of {figure.terms:,} terms;"
            f" analysed in {figure.analyse_s} s, built in {figure.build_s} s, merged in {figure.merge_s} s,"
            f" {figure.file_bytes / 1e6:.1f} MB mapped, {figure.anonymous_bytes / 1e6:.2f} MB anonymous,"
            f" statistics in {figure.statistics_ms} ms"
        )
    for speed in speeds:
        print(
            f"{speed.questions:16s} p50 {speed.p50_ms:6.2f}  p95 {speed.p95_ms:6.2f} (<= {P95_MS_MAX:.0f})"
            f"  p99 {speed.p99_ms:6.2f} ms; p95 with 20 % dead {speed.dead_p95_ms:6.2f},"
            f" in the delta {speed.delta_p95_ms:6.2f};"
            f" bm25s p50 {speed.reference_p50_ms:6.2f} p95 {speed.reference_p95_ms:6.2f},"
            f" ratio of p95 {speed.p95_ms / speed.reference_p95_ms:.2f}"
        )
    for found in agreements:
        quality = ""
        if found.ndcg_at_10 is not None:
            quality = f", nDCG@10 {found.ndcg_at_10:.4f} (bm25s {found.reference_ndcg_at_10:.4f})"
        print(
            f"{found.corpus:8s} {found.queries} queries: {found.same_top_10:.1%} with the reference's ten best,"
            f" greatest difference of a score {found.score_difference_max:.1e}{quality}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lexical", description=__doc__.partition("\n")[0])
    parser.add_argument("--queries", type=int, default=500, help="of each set at most this many")
    parser.add_argument("--out", type=Path, default=Path("reports/lexical.json"))
    arguments = parser.parse_args()
    raise SystemExit(run(arguments.queries, arguments.out))


if __name__ == "__main__":
    main()
