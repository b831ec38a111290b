"""FAISS behind a small typed surface; the only package that imports it.

    kinds       the index kinds by name, and their sizes
    candidates  one trained index of any kind: candidates by quantised scores
    raw         float16 vectors in one memory-mapped file
    refined     both together: candidates re-ranked with raw vectors, in C++
    given_lists the same in inverted lists that were found once for many segments
    exact       brute force over all rows; `living` over those that are alive
    sealed_file what an index file says of itself

Facts the package relies on, all measured with faiss-cpu 1.15.1: concurrent searches are safe when their settings
travel in `SearchParameters`; a bitmap selector is indexed by FAISS id, so ids are dense positions; `add_sa_codes` on
FastScan silently stores wrong codes and is never called; FAISS detects truncated files but not flipped bits, so
callers compare sha256 first; IO_FLAG_MMAP_IFC leaves every kind but FastScan and binary in the page cache (no
anonymous memory), with equal results.
"""

from services.shard.faiss_index.candidates import CandidateIndex as CandidateIndex
from services.shard.faiss_index.construction import codec_id as codec_id
from services.shard.faiss_index.construction import from_codec as from_codec
from services.shard.faiss_index.construction import read as read
from services.shard.faiss_index.construction import train as train
from services.shard.faiss_index.exact import nearest as nearest
from services.shard.faiss_index.exact import nearest_batch as nearest_batch
from services.shard.faiss_index.kinds import DEFAULT_KIND as DEFAULT_KIND
from services.shard.faiss_index.kinds import TRAIN_POINTS_PER_CENTROID_MAX as TRAIN_POINTS_PER_CENTROID_MAX
from services.shard.faiss_index.kinds import TRAIN_POINTS_PER_CENTROID_MIN as TRAIN_POINTS_PER_CENTROID_MIN
from services.shard.faiss_index.kinds import Kind as Kind
from services.shard.faiss_index.kinds import factory_string as factory_string
from services.shard.faiss_index.kinds import inverted_lists as inverted_lists
from services.shard.faiss_index.kinds import kind_of as kind_of
from services.shard.faiss_index.kinds import subquantizers as subquantizers
from services.shard.faiss_index.library import SEED as SEED
from services.shard.faiss_index.library import Bitmap as Bitmap
from services.shard.faiss_index.library import Floats as Floats
from services.shard.faiss_index.library import Positions as Positions
from services.shard.faiss_index.library import use_one_thread as use_one_thread
from services.shard.faiss_index.raw import RawVectors as RawVectors
from services.shard.faiss_index.raw import RawWriter as RawWriter
from services.shard.faiss_index.raw import open_raw as open_raw
from services.shard.faiss_index.refined import RefinedIndex as RefinedIndex
from services.shard.faiss_index.sealed_file import IndexFileError as IndexFileError

InvertedFile = CandidateIndex
"""Most kinds have inverted lists."""
