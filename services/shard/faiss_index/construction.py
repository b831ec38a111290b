"""Where indexes come from: training on a sample, codec bytes, a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from services.shard.faiss_index import binary, sealed_file
from services.shard.faiss_index.candidates import CandidateIndex
from services.shard.faiss_index.kinds import DEFAULT_KIND, Kind, factory_string, inverted_lists
from services.shard.faiss_index.library import SEED, Floats, contiguous, faiss, threads

OPQ_ROUNDS = 20
"""FAISS does 50; the error falls little after the first few."""
OPQ_POINTS_MAX = 32_768
BINARY_FILE = b"IBwF"
"""How FAISS's bytes of a binary inverted file begin."""


def train(
    sample: Floats, threads_count: int = 1, kind: Kind = DEFAULT_KIND, lists: int | None = None
) -> CandidateIndex:
    """Train on float32 rows (n, dim); `lists` None derives nlist from n. Raises ValueError when n is too small.

    Deterministic: equal samples in equal order give an equal codec.
    """
    rows, dim = sample.shape
    lists = inverted_lists(rows, dim) if lists is None else lists
    needed = max(kind.rows_min, lists if kind.inverted else 1)
    if rows < needed:
        raise ValueError(f"{kind} with {lists} lists needs at least {needed} training rows, not {rows}")
    with threads(threads_count):
        if kind is Kind.BINARY_IVF:
            return binary.train(contiguous(sample), lists)
        index = faiss.index_factory(dim, factory_string(kind, dim, lists), faiss.METRIC_INNER_PRODUCT)
        kept = _seed(index, kind)
        index.train(contiguous(sample))
        if kind is Kind.OPQ_IVF_PQ:
            faiss.downcast_VectorTransform(index.chain.at(0)).pq = None
            del kept
    return CandidateIndex(index, kind)


def from_codec(codec: bytes) -> CandidateIndex:
    """An empty index with the codec of an earlier `codec()`. The caller has checked where the bytes come from.

    Raises RuntimeError when FAISS cannot read it, ValueError when it is no known kind.
    """
    if codec[:4] == BINARY_FILE:
        try:
            return binary.from_bytes(codec, sealed_file.parse(codec, len(codec), "codec"))
        except sealed_file.IndexFileError as error:
            raise ValueError(str(error)) from error
    index = faiss.deserialize_index(np.frombuffer(codec, dtype=np.uint8))
    return CandidateIndex(index, _kind_of(index))


def codec_id(codec: bytes) -> str:
    """First 8 hex digits of the codec's sha256: the codec generation in an index epoch."""
    return hashlib.sha256(codec).hexdigest()[:8]


def read(path: Path, kind: Kind | None = None, dim: int | None = None) -> CandidateIndex:
    """Open an index whose sha256 the caller has verified, memory-mapped where its kind allows.

    `kind` and `dim`: refuse any other. Raises OSError, of which IndexFileError names the property that is wrong.
    """
    trailer = sealed_file.trailer_of(path, kind, dim)
    try:
        if trailer.kind == Kind.BINARY_IVF:
            return binary.read(path, trailer)
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        found = CandidateIndex(index, _kind_of(index))
    except (RuntimeError, ValueError) as error:
        raise OSError(f"{path}: {error}") from error
    if (found.kind, found.dim, found.rows) != (trailer.kind, trailer.dim, trailer.rows):
        raise sealed_file.IndexFileError(f"{path}: holds a {found.kind} index, its trailer says {trailer.kind}")
    return found


def _seed(index: Any, kind: Kind) -> Any:
    """Seeds and limits. What is returned must stay referenced until training has ended."""
    core = faiss.downcast_index(index.index) if kind is Kind.OPQ_IVF_PQ else index
    if kind.inverted:
        core.cp.seed, core.cp.min_points_per_centroid = SEED, 1  # FAISS writes a line of warning otherwise
    if kind in (Kind.IVF_PQ_FASTSCAN, Kind.IVF_PQ, Kind.OPQ_IVF_PQ):
        core.pq.cp.seed = SEED
        core.pq.cp.min_points_per_centroid = 1
    if kind in (Kind.IVF_PQ, Kind.OPQ_IVF_PQ):
        core.do_polysemous_training = False  # the factory's default: seconds per subquantiser, for Hamming filtering
    if kind is not Kind.OPQ_IVF_PQ:
        return None
    rotation = faiss.downcast_VectorTransform(index.chain.at(0))
    quantiser = faiss.ProductQuantizer(index.d, core.pq.M, core.pq.nbits)
    quantiser.cp.min_points_per_centroid = 1
    rotation.niter, rotation.max_train_points, rotation.pq = OPQ_ROUNDS, OPQ_POINTS_MAX, quantiser
    return quantiser


def _kind_of(index: Any) -> Kind:
    """Raises ValueError."""
    kinds = {
        faiss.IndexScalarQuantizer: Kind.FLAT,
        faiss.IndexIVFPQFastScan: Kind.IVF_PQ_FASTSCAN,
        faiss.IndexIVFPQ: Kind.IVF_PQ,
        faiss.IndexPreTransform: Kind.OPQ_IVF_PQ,
        faiss.IndexIVFScalarQuantizer: Kind.IVF_SQ8,
        faiss.IndexHNSWSQ: Kind.HNSW,
    }
    kind = kinds.get(type(index))
    if kind is None:
        raise ValueError(f"FAISS's {type(index).__name__} is not one of the index kinds ({', '.join(Kind)})")
    return kind
