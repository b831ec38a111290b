"""How passages are found and ordered, as a caller says it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ostraka.errors import InvalidRequest
from ostraka.v1 import passage_pb2 as passage_pb


class SearchMode(Enum):
    """How candidates are found and ordered; the values are the contract's."""

    DENSE = passage_pb.SEARCH_MODE_DENSE
    """By cosine similarity."""
    LEXICAL = passage_pb.SEARCH_MODE_LEXICAL
    """By BM25."""
    HYBRID = passage_pb.SEARCH_MODE_HYBRID
    """Both, joined by reciprocal rank fusion."""
    TWO_STAGE = passage_pb.SEARCH_MODE_TWO_STAGE
    """The nearest by cosine, ordered by BM25."""

    @classmethod
    def of(cls, given: SearchMode | str) -> SearchMode:
        """A mode by name, such as "hybrid" or "two-stage". Raises InvalidRequest."""
        if isinstance(given, SearchMode):
            return given
        try:
            return cls[given.upper().replace("-", "_")]
        except (KeyError, AttributeError):
            known = ", ".join(mode.name.lower() for mode in cls)
            raise InvalidRequest(f"mode: {given!r} is not one of {known}", field="mode") from None

    @classmethod
    def from_proto(cls, value: int) -> SearchMode:
        return next((mode for mode in cls if int(mode.value) == value), cls.DENSE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """How the two lists of HYBRID are joined; `depth` alone also sets TWO_STAGE. None: the mesh's default."""

    dense_weight: float | None = None
    """Absent: 1."""
    lexical_weight: float | None = None
    """Absent: 1."""
    rank_constant: int | None = None
    """Absent: 10. A passage of rank r adds weight / (rank_constant + r)."""
    depth: int | None = None
    """Candidates taken from each list, at least k. Absent: max(k, 100)."""

    def to_proto(self) -> passage_pb.Fusion:
        """Raises InvalidRequest for what the contract cannot hold."""
        try:
            return passage_pb.Fusion(
                dense_weight=self.dense_weight,
                lexical_weight=self.lexical_weight,
                rank_constant=self.rank_constant,
                depth=self.depth,
            )
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"fusion: {error}", field="fusion") from error
