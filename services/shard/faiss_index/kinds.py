"""The index kinds by name: factory string, list count, code size. Pure but for the names of FAISS types.

`ivf-pq-fastscan` is the FastScan inverted file (Andre et al., "Quicker ADC"): four-bit codes scanned in SIMD
registers. `binary-ivf` keeps one sign bit per dimension and compares by Hamming distance.
"""

from __future__ import annotations

import re
from enum import StrEnum

TRAIN_POINTS_PER_CENTROID_MIN = 12
"""FAISS warns below 39; lists of a dozen rows still find more neighbours than a third as many of 39."""
TRAIN_POINTS_PER_CENTROID_MAX = 256
"""k-means ignores what is above this."""
CODES_LEAST = 48
"""Fewer four-bit codes than that say too little about a row that has this many dimensions."""
SMALL_DIM = 32
SLOW_DIM = 128
"""Dimensions from which the comparison with all centroids is what a search waits for, and encoding too."""
LISTS_SLOW = 2_048
"""There, so many suffice until 4 sqrt(rows) is more: the more rows, the nearer their neighbours."""
HNSW_LINKS = 32
"""Neighbours per node and layer; the bottom layer has twice as many."""


class Kind(StrEnum):
    """How candidates are found. Scores only choose candidates; raw vectors rank them."""

    FLAT = "flat"
    IVF_PQ_FASTSCAN = "ivf-pq-fastscan"
    IVF_PQ = "ivf-pq"
    OPQ_IVF_PQ = "opq-ivf-pq"
    BINARY_IVF = "binary-ivf"
    IVF_SQ8 = "ivf-sq8"
    HNSW = "hnsw"

    @property
    def inverted(self) -> bool:
        """Whether it has inverted lists, so that nprobe is its effort."""
        return self not in (Kind.FLAT, Kind.HNSW)

    @property
    def rows_min(self) -> int:
        """Fewest training rows: one for each centroid of the quantiser."""
        return {Kind.IVF_PQ_FASTSCAN: 16, Kind.IVF_PQ: 256, Kind.OPQ_IVF_PQ: 256}.get(self, 1)


DEFAULT_KIND = Kind.IVF_PQ_FASTSCAN

_FORMS = (
    (Kind.BINARY_IVF, re.compile(r"BIVF\d+")),
    (Kind.OPQ_IVF_PQ, re.compile(r"OPQ\d+,IVF\d+,PQ\d+")),
    (Kind.IVF_PQ_FASTSCAN, re.compile(r"IVF\d+,PQ\d+x4fs")),
    (Kind.IVF_PQ, re.compile(r"IVF\d+,PQ\d+")),
    (Kind.IVF_SQ8, re.compile(r"IVF\d+,SQ8")),
    (Kind.HNSW, re.compile(r"HNSW\d+,SQ8")),
    (Kind.FLAT, re.compile(r"SQfp16")),
)


def divisor_near(dim: int, wanted: float) -> int:
    """The divisor of `dim` nearest to `wanted`, the smaller of two equally near."""
    return min((m for m in range(1, dim + 1) if dim % m == 0), key=lambda m: (abs(m - wanted), m))


def subquantizers(dim: int) -> int:
    """M of four-bit codes: the divisor of `dim` nearest to dim / 4; between 32 and 192 dimensions to CODES_LEAST.

    400,000 word vectors of 50 dimensions need 10,000 candidates for a recall of 0.97 with ten codes, and 200 for 0.99
    with fifty, which take a third of the time in all.
    """
    return divisor_near(dim, max(dim / 4, CODES_LEAST) if dim >= SMALL_DIM else dim / 4)


def inverted_lists(rows: int, dim: int = SLOW_DIM) -> int:
    """nlist for `rows` training rows: a power of two near 16 sqrt(rows) with enough points for each centroid; from
    SLOW_DIM dimensions on at most LISTS_SLOW or near 4 sqrt(rows).

    Many, so that a tenth of them suffices. It holds the ten nearest of 25,612 passages of 384 dimensions in 0.985 of
    the cases with 512 lists, 0.992 with 1,024, 0.997 with 2,048; of 399,500 word vectors of 50 dimensions in 0.994 with
    4,096 lists and 0.997 with 8,192.
    """
    limit = 16.0 * rows**0.5
    if dim >= SLOW_DIM:
        limit = max(4.0 * rows**0.5, min(limit, LISTS_SLOW))
    return 1 << max(0, int(min(limit, rows / TRAIN_POINTS_PER_CENTROID_MIN)).bit_length() - 1)


def factory_string(kind: Kind, dim: int, lists: int) -> str:
    """What FAISS calls an index of the kind; `lists` counts for inverted kinds only."""
    # Eight-bit codes get half as many subquantisers: as many bytes per row as four-bit ones.
    wide = divisor_near(dim, dim / 8)
    return {
        Kind.FLAT: "SQfp16",
        Kind.IVF_PQ_FASTSCAN: f"IVF{lists},PQ{subquantizers(dim)}x4fs",
        Kind.IVF_PQ: f"IVF{lists},PQ{wide}",
        Kind.OPQ_IVF_PQ: f"OPQ{wide},IVF{lists},PQ{wide}",
        Kind.BINARY_IVF: f"BIVF{lists}",
        Kind.IVF_SQ8: f"IVF{lists},SQ8",
        Kind.HNSW: f"HNSW{HNSW_LINKS},SQ8",
    }[kind]


def kind_of(factory: str) -> Kind:
    """The kind with that factory string. Raises ValueError."""
    for kind, form in _FORMS:
        if form.fullmatch(factory):
            return kind
    raise ValueError(f"{factory!r} is not the factory string of an index kind ({', '.join(Kind)})")
