"""How the hits of a request are found and ordered, read from its `mode` and `fusion`; every refusal names its field."""

from __future__ import annotations

from dataclasses import dataclass, field

from ostraka.v1 import passage_pb2
from services.router.fusion import RANK_CONSTANT, Weights
from services.runtime.errors import InvalidArgument

Mode = passage_pb2.SearchMode
DENSE = passage_pb2.SEARCH_MODE_DENSE
LEXICAL = passage_pb2.SEARCH_MODE_LEXICAL
HYBRID = passage_pb2.SEARCH_MODE_HYBRID
TWO_STAGE = passage_pb2.SEARCH_MODE_TWO_STAGE

DEPTH_DEFAULT = 100
"""Candidates of each list when neither `k` nor the request asks for more."""
WEIGHT_MAX = 1e6
"""Keeps fused scores finite as float32."""
_MODES = {
    passage_pb2.SEARCH_MODE_UNSPECIFIED: DENSE,
    DENSE: DENSE,
    LEXICAL: LEXICAL,
    HYBRID: HYBRID,
    TWO_STAGE: TWO_STAGE,
}


@dataclass(frozen=True, slots=True)
class Ranking:
    """How hits are found and ordered."""

    mode: Mode.ValueType = DENSE
    k: int = 10
    """Hits of the reply."""
    depth: int = 10
    """Candidates asked of each shard, in each list: `k` unless there is something to choose from."""
    weights: Weights = field(default_factory=Weights)

    @property
    def name(self) -> str:
        """dense, lexical, hybrid or two_stage: for spans and messages."""
        return Mode.Name(self.mode).removeprefix("SEARCH_MODE_").lower()

    @property
    def needs_vector(self) -> bool:
        return self.mode != LEXICAL

    @property
    def needs_text(self) -> bool:
        return self.mode != DENSE

    @property
    def lists(self) -> int:
        """Lists of hits in a shard's answer."""
        return 2 if self.mode == HYBRID else 1


def ranking_of(mode: Mode.ValueType, fusion: passage_pb2.Fusion | None, k: int, k_max: int) -> Ranking:
    """`fusion` None: not in the request. Raises InvalidArgument."""
    chosen = _MODES.get(mode)
    if chosen is None:
        raise InvalidArgument(f"{mode} is not a mode; use DENSE, LEXICAL, HYBRID or TWO_STAGE", "mode")
    if chosen in (DENSE, LEXICAL):
        if fusion is not None:
            raise InvalidArgument(f"has no meaning in mode {_word(chosen)}, which has one list", "fusion")
        return Ranking(chosen, k, k)
    given = fusion if fusion is not None else passage_pb2.Fusion()
    if chosen == TWO_STAGE:
        weighed = {descriptor.name for descriptor, _ in given.ListFields()} - {"depth"}
        if weighed:
            raise InvalidArgument(
                "has no meaning in mode TWO_STAGE, which orders by BM25 alone", f"fusion.{min(weighed)}"
            )
    return Ranking(chosen, k, _depth(given, k, k_max), _weights(given))


def _depth(fusion: passage_pb2.Fusion, k: int, k_max: int) -> int:
    if not fusion.HasField("depth"):
        return min(max(k, DEPTH_DEFAULT), k_max)
    if not k <= fusion.depth <= k_max:
        raise InvalidArgument(f"is {fusion.depth}; from k, which is {k}, to {k_max}", "fusion.depth")
    return fusion.depth


def _weights(fusion: passage_pb2.Fusion) -> Weights:
    dense = _weight(fusion.dense_weight, "dense_weight") if fusion.HasField("dense_weight") else 1.0
    lexical = _weight(fusion.lexical_weight, "lexical_weight") if fusion.HasField("lexical_weight") else 1.0
    if dense + lexical == 0.0:
        raise InvalidArgument("is 0 and so is lexical_weight; one of them must be more", "fusion.dense_weight")
    constant = fusion.rank_constant if fusion.HasField("rank_constant") else RANK_CONSTANT
    if constant < 1:
        raise InvalidArgument("is 0; at least 1", "fusion.rank_constant")
    return Weights(dense, lexical, constant)


def _weight(value: float, name: str) -> float:
    if not 0.0 <= value <= WEIGHT_MAX:  # NaN fails it too
        raise InvalidArgument(f"is {value}; from 0 to {WEIGHT_MAX:.0f}", f"fusion.{name}")
    return value


def _word(mode: Mode.ValueType) -> str:
    return Mode.Name(mode).removeprefix("SEARCH_MODE_")
