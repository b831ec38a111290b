"""The numbers of the two comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.simulation.checker import check
from tests.simulation.history import History
from tests.simulation.read_rules.ingest import DIGEST, RATES, run_with_ingest
from tests.simulation.read_rules.rules import OURS, RULES
from tests.simulation.read_rules.schedule import Reads, run_with_faults
from tests.simulation.read_rules.verdict import Judge, Wrong
from tests.simulation.timeline import MS


@dataclass(slots=True)
class Tally:
    """One rule over many schedules."""

    issued: int = 0
    answered: int = 0
    wrong: Wrong = field(default_factory=Wrong)
    wrong_searches: int = 0
    indirect: int = 0
    requests: int = 0
    replica_searches: int = 0

    def add(self, reads: Reads, judge: Judge) -> None:
        """One schedule more."""
        self.issued += reads.issued
        self.answered += len(reads.answered)
        self.indirect += reads.indirect
        self.requests += reads.requests
        self.replica_searches += reads.replica_searches
        for search in reads.answered:
            wrong = judge.judge(search)
            self.wrong.add(wrong)
            self.wrong_searches += bool(wrong)

    def per_10000(self, rows: int) -> float:
        """Rows, for each 10,000 answered searches."""
        return 10_000 * rows / max(1, self.answered)


@dataclass(slots=True)
class Faults:
    """All rules on the same schedules of one configuration."""

    config: str
    schedules: int = 0
    acked: int = 0
    rules: dict[str, Tally] = field(default_factory=dict)


def compare_under_faults(seeds: Iterable[int], config: str) -> Iterator[Faults]:
    """Every rule on each schedule; yields the same growing tally after each. Raises AssertionError when the
    simulator's own checker finds a broken promise in Ostraka's searches."""
    faults = Faults(config, rules={name: Tally() for name in RULES})
    for seed in seeds:
        history, reads = run_with_faults(seed, config, RULES)
        judge = Judge(history.writes)
        for name, of_rule in reads.items():
            faults.rules[name].add(of_rule, judge)
        found = check(History(history.writes, reads[OURS].answered, views=history.views))
        assert not found, f"seed {seed}, {config}: {found[0]}"
        faults.schedules += 1
        faults.acked += sum(write.acked_us is not None for write in history.writes)
        yield faults


@dataclass(frozen=True, slots=True)
class Ingest:
    """Digest equality and Ostraka's rule beside one rate of writes; shares are of the answered searches."""

    rate: int
    searches: int
    matched: float
    again: float
    waited: float
    replica_searches: tuple[float, float]
    """For each search: digest equality, Ostraka."""
    ms_p99: tuple[float, float]


def compare_under_ingest(seconds: int, rates: Sequence[int] = RATES) -> Iterator[Ingest]:
    """One line for each rate. Raises AssertionError when a rule did not answer, or Ostraka's was wrong."""
    for rate in rates:
        history, reads = run_with_ingest(rate, seconds)
        judge = Judge(history.writes)
        for name, of_rule in reads.items():
            assert len(of_rule.answered) == of_rule.issued > 0, f"{name} left searches unanswered without a fault"
        assert not any(judge.judge(search) for search in reads[OURS].answered)
        digest, ours = reads[DIGEST], reads[OURS]
        yield Ingest(
            rate,
            ours.issued,
            1 - digest.indirect / digest.issued,
            ours.indirect / ours.issued,
            ours.waited / ours.issued,
            (digest.replica_searches / digest.issued, ours.replica_searches / ours.issued),
            (_ms_p99(digest), _ms_p99(ours)),
        )


def _ms_p99(reads: Reads) -> float:
    taken = sorted(search.returned_us - search.invoked_us for search in reads.answered)
    return taken[int(0.99 * len(taken))] / MS
