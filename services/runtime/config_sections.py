"""The sections of the mesh file, one frozen dataclass each; every default is the one that is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MetadataKind = Literal["text", "integer", "number", "flag"]
"""Type of a declared metadata field. A number also takes integers, as the nearest double."""


IndexKind = Literal["flat", "ivf-pq-fastscan", "ivf-pq", "opq-ivf-pq", "binary-ivf", "ivf-sq8", "hnsw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """`[mesh]`: what the whole mesh shares."""

    data_dir: Path = Path(".mesh")
    """Everything the mesh writes: replicas, topology, certificates, logs, traces. Relative to the mesh file."""
    deadline_ms_default: int = 10_000
    """Deadline given to a call that carries none."""
    deadline_ms_max: int = 120_000
    """A longer deadline is shortened to this."""
    message_bytes_max: int = 16 * 1024 * 1024
    """Largest gRPC message sent or received."""
    streams_max: int = 512
    """Concurrent streams a server accepts per connection."""
    drain_s: float = 5.0
    """How long a server finishes calls under way after the first stop signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryConfig:
    """`[telemetry]`: traces and logs."""

    sample_ratio: float = 1.0
    """Share of root traces kept; a caller's sampled flag wins."""
    otlp_endpoint: str = ""
    """OTLP gRPC endpoint; empty: OTLP-JSON files in the data directory. `OTEL_EXPORTER_OTLP_ENDPOINT` sets it."""
    file_bytes_max: int = 64 * 1024 * 1024
    """A trace file is rotated at this size; one predecessor is kept."""
    queue_spans_max: int = 16_384
    """Spans waiting for export; more are dropped and counted."""
    include_text: bool = False
    """Put passage texts into spans. Off: ids, digests and scores only."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    metrics_port: int = 0
    """First port of the Prometheus scrape endpoints, on 127.0.0.1 only: each process takes the next one, in the
    order embed, router, generator, nodes by name. 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """`[embed]`: the texts-to-vectors service."""

    addresses: tuple[str, ...] = ("127.0.0.1:7401",)
    """Where the embed servers listen; callers go round robin."""
    model: str = "all-MiniLM-L6-v2"
    """The packaged default, or any sentence-transformers name or path."""
    model_sha256: str = ""
    """Expected sha256 of `model.safetensors`; empty: known for the default, unchecked for others."""
    threads: int = 0
    """Torch threads; 0: one per core."""
    batch_texts_max: int = 64
    """Texts in one forward pass."""
    queue_texts_max: int = 2_048
    """Texts waiting; more are refused with RESOURCE_EXHAUSTED."""
    request_texts_max: int = 512
    """Texts in one call."""
    text_bytes_max: int = 65_536
    """Bytes of one text in UTF-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """`[router]`: the coordinator."""

    addresses: tuple[str, ...] = ("127.0.0.1:7402",)
    query_cache_entries: int = 4_096
    """Query embeddings kept, least recently used out first."""
    k_max: int = 1_000
    """Most hits a query may ask for."""
    queries_max: int = 256
    """Queries in one Search."""
    documents_max: int = 256
    """Documents in one Upsert, Delete or Get."""
    document_passages_max: int = 4_096
    """Passages in one document."""
    document_bytes_max: int = 8 * 1024 * 1024
    """One document as stored, vectors and metadata included; a repair sends a document in one message."""
    metadata_bytes_max: int = 16_384
    """Metadata of one passage, keys and values in UTF-8."""
    text_bytes_max: int = 65_536
    """One passage's text, or a query, in UTF-8."""
    calls_inflight_max: int = 1_024
    """Calls under way; more are refused with RESOURCE_EXHAUSTED."""
    summary_hedge_ms: int = 5
    """After R answers, how long a summary round waits for the rest."""
    search_wait_ms: int = 50
    """How long a replica waits for missing batches before it pulls them."""
    leg_hedge_ms: int = 150
    """A second replica is asked when the first has not answered by then."""
    write_retry_ms: int = 100
    """Pause before a voter that did not answer gets the same batch again."""
    relevance_min: float = 0.25
    """Cosine below which a passage found by nearness is not put into a prompt; what was found by words is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """`[generator]`: passages and a question to a cited answer."""

    addresses: tuple[str, ...] = ("127.0.0.1:7403",)
    backend: Literal["extractive", "openai"] = "extractive"
    base_url: str = ""
    """OpenAI-compatible endpoint, for example http://127.0.0.1:7480/v1."""
    model: str = "extractive"
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; never the key itself."""
    context_tokens_max: int = 2_048
    """Prompt and answer together."""
    answer_tokens_max: int = 512
    request_timeout_s: float = 60.0
    temperature: float = 0.0
    calls_inflight_max: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardConfig:
    """`[shard]`: what every shard node shares."""

    delta_rows_flush: int = 8_192
    """Rows in the exact delta before it is flushed into a segment."""
    train_rows_min: int = 9_984
    """Rows before IVF-PQ is trained (39 x 256, the least k-means accepts without warning)."""
    batch_rows_max: int = 256
    """Rows in one write batch."""
    batch_bytes_max: int = 1024 * 1024
    group_commit_rows: int = 256
    group_commit_bytes: int = 4 * 1024 * 1024
    write_queue_max: int = 256
    """Write batches waiting for the writer thread."""
    search_threads: int = 0
    """Search threads; 0: one per core."""
    search_queue_max: int = 256
    disk_reserve_bytes: int = 256 * 1024 * 1024
    """Writes are refused below this much free space."""
    gossip_ms: int = 500
    write_age_ms_max: int = 60_000
    """A write whose version is older than this is refused."""
    clock_skew_ms_max: int = 5_000
    """A write whose version is this far ahead is refused."""
    superseded_keep_ms: int = 120_000
    """Superseded rows stay on disk this long, for searches that began before."""
    scrub_interval_s: int = 3_600
    """Pause between two complete checks of all rows and files."""
    recall_target: float = 0.99
    """Recall@10 that nprobe and the candidate count are chosen for."""
    background_cpu: float = 0.25
    """Share of one core that flushing, merging and checking may use; 1: as much as there is."""
    codec_exchange_ms: int = 2_000
    """How often nodes ask each other for newer codecs, and the owner looks whether one must be trained."""
    lexical_statistics_ms: int = 5_000
    """How often a node asks for the word statistics of shards that it does not host."""
    codec_owner_silent_ms: int = 10_000
    """A node that was not heard for so long leaves the training of codecs to the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotsConfig:
    """`[snapshots]`: how snapshots reach an object store. Credentials are where boto3 looks for them, never here."""

    endpoint_url: str = ""
    """Of an S3 server other than AWS, for example http://127.0.0.1:9000; empty: AWS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """`[nodes.NAME]`: one shard node."""

    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalConfig:
    """`[collections.NAME.lexical]`: how the texts of a collection are analysed and scored."""

    language: Literal["english", "none"] = "english"
    """`english` drops stop words and endings; `none` takes words as they are. Changed, all words are indexed anew."""
    k1: float = 1.5
    """BM25: how soon further occurrences of a term add little."""
    b: float = 0.75
    """BM25: how much a long passage is held against it, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionConfig:
    """`[collections.NAME]`: a named set of documents with one embedding model."""

    shards: int = 2
    replicas: int = 3
    """N: voters per shard."""
    read_quorum: int = 2
    """R: voters a read hears."""
    write_quorum: int = 2
    """W: voters that hold a write before it is acknowledged."""
    allow_weak: bool = False
    """Permit R + W <= N; QUORUM is then marked weak in replies."""
    dim: int = 384
    index: IndexKind = "ivf-pq-fastscan"
    """How candidates are found in segments; raw vectors rank them whatever the kind."""
    embedding_model: str = "all-MiniLM-L6-v2"
    """Model id that vectors of this collection must come from."""
    embedding_revision: str = ""
    """Revision of that model; empty: any, and the first seen is reported."""
    metadata: Mapping[str, MetadataKind] = field(default_factory=dict)
    """`[collections.NAME.metadata]`: fields that filters may name, with their types. Values of other fields are
    stored and served, but cannot be filtered by; `source` and `document_id` always can and are not declared."""
    lexical: LexicalConfig = field(default_factory=LexicalConfig)
    """`[collections.NAME.lexical]`: how words are searched for."""
