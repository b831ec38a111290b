"""Raw samples: one record per scheduled call, kept whole.

Latency counts from the *intended* time of the call, so a generator or a mesh that stalls cannot hide the wait of the
calls behind it (coordinated omission; Tene, "How NOT to Measure Latency"). Percentiles are order statistics of these
records, never interpolated and never taken from Locust's rounded buckets.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

OK = "OK"
NOT_SENT = "NOT_SENT"
"""Code of a call that the generator could not send because too many were in flight."""
MISSING = "MISSING"
"""Code of a scheduled call of which there is no record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What became of one scheduled call; times in seconds since the run began."""

    index: int
    phase: str
    operation: str
    question: int
    intended_s: float
    sent_s: float
    done_s: float
    code: str
    """gRPC status name, OK only when the reply said what the level promises; else why not."""
    trace_id: str = ""
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.code == OK

    @property
    def latency_ms(self) -> float:
        """From the intended time; infinite for a failed call, which no latency objective may count as met."""
        return (self.done_s - self.intended_s) * 1e3 if self.ok else math.inf

    @property
    def service_ms(self) -> float:
        """From the moment the call was really sent."""
        return (self.done_s - self.sent_s) * 1e3 if self.ok else math.inf

    @property
    def lag_ms(self) -> float:
        """How late the generator itself was."""
        return (self.sent_s - self.intended_s) * 1e3


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (nearest rank).

    Raises ValueError when there are no values or `percent` is not in (0, 100].
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"percentile {percent} of {len(values)} values is not defined")
    rank = math.ceil(len(values) * percent / 100 - 1e-9)
    return sorted(values)[max(rank, 1) - 1]


def failures_by_code(samples: Iterable[Sample]) -> dict[str, int]:
    """How often each failure code occurred, most frequent first."""
    return dict(Counter(sample.code for sample in samples if not sample.ok).most_common())


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """One JSON object a line, in the order given."""
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps(asdict(sample), separators=(",", ":")) + "\n")


def read_samples(path: Path) -> Iterator[Sample]:
    """Records of a finished run. Raises ValueError naming file and line when one is malformed."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield Sample(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a sample: {error}") from error
