"""`tune`: recall against cost for vectors at hand, as a table, a plot and JSON, and the setting it proposes."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from ostraka.cli.exit_codes import ExitCode
from ostraka.cli.options import JsonOption
from ostraka.cli.output import CONSOLE, ERRORS, command, print_json, print_table
from services.shard import faiss_index, tuning
from services.shard.faiss_index import CandidateIndex, IndexFileError, Kind
from services.shard.tuning import Point, Settings

ROWS_MIN = 1_000
"""Fewer rows are scanned exactly."""
ROWS_MAX = 2_000_000
TRAIN_ROWS_MAX = 131_072
TIMED_QUERIES = 64
ADD_ROWS = 8_192


@dataclass(frozen=True, slots=True)
class Line:
    """One effort with the fewest candidates that reach the target at it, or all."""

    kind: str
    effort: int
    candidates: int
    recall: float
    recall_sure: float
    scanned: float
    latency_us: float
    """Of one query with re-ranking, one thread; a measurement of this moment on this machine."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What `tune` says of one kind."""

    kind: str
    factory: str
    rows: int
    dim: int
    target: float
    reached: bool
    bytes_per_row: float
    settings: Settings
    curve: tuple[Line, ...]


@command
async def tune(
    vectors: Annotated[Path | None, typer.Option(help="A .npy file of vectors (rows, dim).")] = None,
    replica: Annotated[
        Path | None, typer.Option(help="A replica's directory; the vectors of its segments are read.")
    ] = None,
    kinds: Annotated[list[Kind] | None, typer.Option("--kind", help="Index kind; may be repeated.")] = None,
    recall: Annotated[float, typer.Option(help="Recall@10 to reach, above 0 and below 1.")] = 0.99,
    plot: Annotated[Path | None, typer.Option(help="Write the curves to this .png or .svg file.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the JSON to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure recall against cost on the vectors themselves and propose settings. Exit code 1: target not reached."""
    if (vectors is None) == (replica is None):
        raise typer.BadParameter("exactly one of --vectors and --replica says which vectors to measure")
    if not 0 < recall < 1:
        raise typer.BadParameter(f"--recall must lie between 0 and 1, not {recall}")
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise typer.BadParameter(f"--plot writes .png or .svg, not {plot.name!r}")
    wanted = list(dict.fromkeys(kinds or [faiss_index.DEFAULT_KIND]))
    if Kind.FLAT in wanted:
        raise typer.BadParameter("--kind flat scans every row exactly; it has nothing to tune")
    draw = _plotter() if plot is not None else None
    rows = await asyncio.to_thread(read_vectors, vectors, replica)
    proposals = [await asyncio.to_thread(propose, rows, kind, recall) for kind in wanted]
    if plot is not None and draw is not None:
        _plot(draw, proposals, plot)
    if output is not None:
        output.write_text(json.dumps([_plain(each) for each in proposals], indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(proposals)
    else:
        _print(proposals)
    if not all(each.reached for each in proposals):
        raise typer.Exit(ExitCode.FAILED)


def read_vectors(path: Path | None, replica: Path | None) -> NDArray[np.float16]:
    """Unit rows float16 (n, dim) of a .npy file or of a replica's segments. Raises typer.BadParameter."""
    try:
        if path is not None:
            made: NDArray[Any] = np.load(path, allow_pickle=False)
        else:
            assert replica is not None, "one of the two is given"
            made = _of_segments(replica)
    except (OSError, ValueError, KeyError) as error:
        raise typer.BadParameter(f"{path or replica}: vectors cannot be read: {error}") from error
    if made.ndim != 2 or made.dtype.kind != "f":
        raise typer.BadParameter(f"{path or replica}: not rows of numbers: shape {made.shape}, {made.dtype}")
    if not ROWS_MIN <= len(made) <= ROWS_MAX:
        raise typer.BadParameter(f"{path or replica}: {len(made)} rows; {ROWS_MIN} to {ROWS_MAX} can be tuned")
    lines = made.astype(np.float32)
    lengths = np.linalg.norm(lines, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise typer.BadParameter(f"{path or replica}: a row of zeros, or a number that is not finite")
    unit: NDArray[np.float16] = (lines / lengths).astype(np.float16)
    return unit


def _of_segments(replica: Path) -> NDArray[np.float16]:
    manifests = sorted((replica / "segments").glob("*/manifest.json"))
    if not manifests:
        raise IndexFileError("no sealed segment; vectors that are not sealed yet cannot be tuned")
    dims = [int(json.loads(path.read_bytes())["dim"]) for path in manifests]
    files = [path.parent / "vectors.faiss" for path in manifests]
    return np.concatenate([faiss_index.open_raw(file, dim).vectors for file, dim in zip(files, dims, strict=True)])


def propose(rows: NDArray[np.float16], kind: Kind, target: float) -> Proposal:
    """Train, measure the curve, and choose."""
    faiss_index.use_one_thread()
    order = np.random.default_rng(faiss_index.SEED).permutation(len(rows))[:TRAIN_ROWS_MAX]
    index = faiss_index.train(rows[np.sort(order)].astype(np.float32), 1, kind, faiss_index.inverted_lists(*rows.shape))
    for start in range(0, len(rows), ADD_ROWS):
        index.add(rows[start : start + ADD_ROWS].astype(np.float32))
    found = tuning.probes(rows)
    points: list[Point] = []
    lines: list[Line] = []
    for each in tuning.curve(index, found):
        points += each
        chosen = tuning.choose(each, target)
        lines.append(
            Line(
                kind=kind.value,
                effort=chosen.effort,
                candidates=chosen.candidates,
                recall=chosen.recall,
                recall_sure=chosen.recall_sure,
                scanned=chosen.scanned,
                latency_us=_latency_us(index, rows, found.queries[:TIMED_QUERIES], chosen),
            )
        )
    return Proposal(
        kind=kind.value,
        factory=index.factory,
        rows=len(rows),
        dim=rows.shape[1],
        target=target,
        reached=tuning.choose(points, target).recall_sure >= target,
        bytes_per_row=index.bytes_per_row,
        settings=tuning.settings_of(points, target),
        curve=tuple(lines),
    )


def _latency_us(index: CandidateIndex, rows: NDArray[np.float16], queries: NDArray[np.float32], point: Point) -> float:
    began = time.perf_counter()
    for query in queries:
        found = index.search(query[None, :], point.candidates, point.effort, None)[0]
        kept = found[found >= 0]
        np.argsort(-(rows[kept].astype(np.float32) @ query))
    return (time.perf_counter() - began) / len(queries) * 1e6


def _plotter() -> Any:
    """matplotlib's pyplot without a display. Raises typer.BadParameter."""
    try:
        import matplotlib
    except ImportError as error:
        raise typer.BadParameter("--plot needs matplotlib: pip install 'ostraka[tune]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _plot(plt: Any, proposals: list[Proposal], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5))
    for each in proposals:
        axes.plot([line.latency_us for line in each.curve], [line.recall for line in each.curve], "o-", label=each.kind)
    axes.axhline(proposals[0].target, linestyle="--", color="grey")
    axes.set_xscale("log")
    axes.set_xlabel("latency of one query, microseconds, one thread")
    axes.set_ylabel("recall@10")
    axes.set_title(f"{proposals[0].rows:,} x {proposals[0].dim}")
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


def _print(proposals: list[Proposal]) -> None:
    for each in proposals:
        print_table(
            f"{each.factory}: {each.rows:,} rows of {each.dim} dimensions, {each.bytes_per_row:g} bytes per row",
            ("effort", "candidates", "recall@10", "sure", "scanned", "us/query"),
            [(x.effort, x.candidates, x.recall, x.recall_sure, x.scanned, round(x.latency_us)) for x in each.curve],
        )
        chosen = each.settings
        text = f"effort {chosen.nprobe}, {chosen.candidates_10} candidates: recall@10 {chosen.recall:.4f}"
        if each.reached:
            CONSOLE.print(f"proposed for {each.kind}: {text}", markup=False)
        else:
            ERRORS.print(f"{each.kind} does not surely reach {each.target}; at best {text}", markup=False)


def _plain(value: Proposal) -> dict[str, Any]:
    return asdict(value)
