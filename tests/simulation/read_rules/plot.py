"""The two comparisons as one picture, the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.simulation.read_rules.rules import OURS
from tests.simulation.read_rules.tally import Faults, Ingest

COLOURS = {"stale": "#d98032", "resurrected": "#8a3b8f", "missing": "#3f7fb5"}


def draw(path: Path, faults: Faults, ingest: Sequence[Ingest]) -> None:
    """Write an SVG, or a PNG if `path` ends so. Left: wrong rows by rule. Right: how often a fallback is needed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "read-rules", "font.size": 9, "axes.spines.top": False}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        _wrong_rows(left, faults)
        _fallbacks(right, ingest)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
        plt.close(figure)


def _wrong_rows(axes: Any, faults: Faults) -> None:
    names = list(faults.rules)
    starts = [0.0] * len(names)
    for kind, colour in COLOURS.items():
        widths = [tally.per_10000(getattr(tally.wrong, kind)) for tally in faults.rules.values()]
        axes.barh(names, widths, left=starts, color=colour, label=kind, height=0.6)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for row, total in enumerate(starts):
        axes.text(total + max(starts) * 0.012, row, f"{total:,.0f}", va="center")
    axes.set_xlim(0, max(starts) * 1.12)
    axes.invert_yaxis()
    axes.spines["right"].set_visible(False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("wrong rows in 10,000 answered searches")
    axes.set_title(f"Under faults, N/R/W = {faults.config}", loc="left")
    axes.legend(frameon=False, loc="lower right")


def _fallbacks(axes: Any, ingest: Sequence[Ingest]) -> None:
    rates = [str(line.rate) for line in ingest]
    axes.plot(rates, [100 * (1 - line.matched) for line in ingest], "o-", color="#555555", label="digests differ")
    again = [100 * line.again for line in ingest]
    axes.plot(rates, again, "s-", color="#2b8a57", label=f"{OURS}: a second search was sent")
    waited = [100 * line.waited for line in ingest]
    axes.plot(rates, waited, "^--", color="#2b8a57", label=f"{OURS}: waited at a replica")
    axes.spines["right"].set_visible(False)
    axes.set_ylim(bottom=-1)
    axes.set_xlabel("writes per second to one shard, no faults")
    axes.set_ylabel("% of searches")
    axes.set_title("How often the first answer does not do", loc="left")
    axes.legend(frameon=False, loc="upper left")
