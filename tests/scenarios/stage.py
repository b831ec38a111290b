"""What scenario commands act on: replicas with their disks, batches, and one round of each kind."""

from __future__ import annotations

from services.quorum.clock import Version, pack
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.members import Members, ReplicaRef
from services.quorum.replica import ReplicaCore
from services.quorum.rows import HeadRow, PassageRow, WriteBatch
from services.quorum.search import Accept, Decision, FreshRound, Leg, QuorumSearch, Unavailable
from services.quorum.status import ReplicaStatus
from services.quorum.summary import SummaryRound
from services.quorum.vote import Vote
from services.quorum.write import WriteRound
from tests.simulation.memory_store import DurableRows, Transaction

NOW_MS = 1_000_000
"""The wall clock of every replica; versions are given in milliseconds relative to it."""
EPOCH = 1


class Stage:
    """One cluster. Each `do_` method is a command: words in, lines out."""

    def __init__(self) -> None:
        self._disks: dict[str, DurableRows] = {}
        self._cores: dict[str, ReplicaCore] = {}
        self._open: dict[str, Transaction] = {}
        self._batches: dict[str, WriteBatch] = {}
        self._members: Members | None = None
        self._summaries: SummaryRound | None = None
        self._search: QuorumSearch | None = None
        self._legs: dict[str, Leg] = {}
        self._write: WriteRound | None = None

    def do_cluster(self, words: list[str]) -> list[str]:
        """cluster N/R/W: replicas a, b, c ..."""
        voters, read, write = (int(part) for part in words[0].split("/"))
        names = "abcdefgh"[:voters]
        self._members = Members(EPOCH, tuple(ReplicaRef(name, name) for name in names), read, write)
        for name in names:
            self._disks[name] = DurableRows()
            self._start(name)
        return [f"intersecting: {self._members.intersecting}"]

    def do_batch(self, words: list[str]) -> list[str]:
        """batch NAME GTID @MS [doc:ordinal=text] [doc#passages] [after=GTID,...]: the last two are head and depends."""
        name, gtid, at = words[:3]
        version = version_of(at)
        passages, heads, depends = [], [], GtidSet.EMPTY
        for word in words[3:]:
            if word.startswith("after="):
                depends = set_of(word.removeprefix("after="))
            elif "=" in word:
                place, text = word.split("=")
                document_id, ordinal = place.split(":")
                passages.append(PassageRow(document_id, int(ordinal), version, text.encode(), b""))
            else:
                document_id, count = word.split("#")
                heads.append(HeadRow(document_id, int(count), version))
        self._batches[name] = WriteBatch(gtid_of(gtid), version, tuple(passages), tuple(heads), depends)
        return []

    def do_apply(self, words: list[str]) -> list[str]:
        """apply REPLICA BATCH...: in one transaction, committed and published."""
        lines = self.do_begin(words)
        self.do_commit(words[:1])
        self.do_publish(words[:1])
        return lines

    def do_begin(self, words: list[str]) -> list[str]:
        """begin REPLICA BATCH...: write, and leave the transaction open."""
        core, transaction = self._cores[words[0]], Transaction(self._disks[words[0]])
        self._open[words[0]] = transaction
        statuses = core.apply([(self._batches[name], EPOCH) for name in words[1:]], NOW_MS, transaction)
        return [f"{words[0]} {name}: {status.name}" for name, status in zip(words[1:], statuses, strict=True)]

    def do_commit(self, words: list[str]) -> list[str]:
        """commit REPLICA: the disk has synced."""
        self._open[words[0]].commit()
        return []

    def do_publish(self, words: list[str]) -> list[str]:
        """publish REPLICA: the view follows the disk."""
        self._cores[words[0]].committed()
        del self._open[words[0]]
        return []

    def do_rollback(self, words: list[str]) -> list[str]:
        """rollback REPLICA: the open transaction failed."""
        self._cores[words[0]].aborted()
        del self._open[words[0]]
        return []

    def do_restart(self, words: list[str]) -> list[str]:
        """restart REPLICA: killed and started again with its disk."""
        self._open.pop(words[0], None)
        self._start(words[0])
        return []

    def do_admit(self, words: list[str]) -> list[str]:
        """admit REPLICA BATCH EPOCH: the check before queueing."""
        return [self._cores[words[0]].admit(self._batches[words[1]], int(words[2]), NOW_MS).name]

    def do_pull(self, words: list[str]) -> list[str]:
        """pull REPLICA PEER [GTIDS]: fetch what is missing, or these, and merge it."""
        name, peer = words[:2]
        core, source = self._cores[name], self._cores[peer]
        want = set_of(words[2]) if len(words) > 2 else source.applied.difference(core.applied)
        lines = []
        for bundle in source.pull(want, self._disks[peer], have=core.applied):
            transaction = Transaction(self._disks[name])
            core.merge(bundle, transaction)
            transaction.commit()
            core.committed()
            shown = [f"{d.head.document_id}@{millis(d.head.version)}#{d.head.passages}" for d in bundle.documents]
            staged = [f"{row.document_id}:{row.ordinal}@{millis(row.version)}" for row in bundle.staged]
            lines.append(f"covers {text_of(bundle.covers)} documents {shown} staged {staged}")
        return lines or ["nothing"]

    def do_show(self, words: list[str]) -> list[str]:
        """show REPLICA...: the published set, then every document as a search sees it, then what is staged."""
        lines = []
        for name in words:
            disk = self._disks[name]
            lines.append(f"{name} applied {text_of(self._cores[name].applied)}")
            for document_id in sorted({*disk.heads, *disk.passages}):
                lines.append(f"  {document_id} {self._document(disk, document_id)}")
        return lines

    def _document(self, disk: DurableRows, document_id: str) -> str:
        head = disk.head(document_id)
        parts = ["no head"]
        if head is not None:
            live = [row.vector.decode() for row in disk.live_passages(document_id)]
            parts = [f"@{millis(head.version)} deleted" if not head.passages else f"@{millis(head.version)} {live}"]
        for (version, ordinal), row in sorted(disk.rows_of(document_id).items()):
            if head is None or version > head.version:
                parts.append(f"staged :{ordinal}@{millis(version)} {row.vector.decode()}")
        return ", ".join(parts)

    def do_summary(self, words: list[str]) -> list[str]:
        """summary: begin a round; summary REPLICA...: these answer it; -REPLICA: this one cannot be reached."""
        assert self._members is not None
        if not words or self._summaries is None:
            self._summaries = SummaryRound(self._members)
        for word in words:
            if word.startswith("-"):
                self._summaries.fail(word[1:])
            else:
                self._summaries.add(self._cores[word].summary(EPOCH))
        round_ = self._summaries
        if round_.vote is not Vote.WON:
            return [round_.vote.name]
        require = round_.require()
        holders = ",".join(round_.holders(require)) or "nobody"
        return [f"WON require {text_of(require)} clock {round_.hlc_max() >> 16} holders {holders}"]

    def do_search(self, words: list[str]) -> list[str]:
        """search ORDER [REQUIRE]: a speculative quorum search, or one of a view that contains REQUIRE."""
        assert self._members is not None
        order = tuple(ReplicaRef(name, name) for name in words[0].split(","))
        self._search = QuorumSearch(self._members, order, set_of(words[1]) if len(words) > 1 else None)
        self._legs.clear()
        return [self._sent(self._search.first())]

    def do_leg(self, words: list[str]) -> list[str]:
        """leg REPLICA: it answers the search as it is now. leg -REPLICA: it does not answer."""
        assert self._search is not None
        name = words[0].removeprefix("-")
        if name not in self._legs:
            raise ValueError(f"no leg to {name} is under way, only to {sorted(self._legs)}")
        leg = self._legs.pop(name)
        if words[0].startswith("-"):
            self._search.leg_failed(name, f"{name} did not answer")
        else:
            core = self._cores[name]
            enough = core.applied.issuperset(leg.require)
            status = ReplicaStatus.OK if enough else ReplicaStatus.NOT_COVERED
            self._search.leg_answered(name, status, core.applied, core.hlc_max, leg.require, epoch=EPOCH)
        return [self._decision(self._search.decide())]

    def do_hear(self, words: list[str]) -> list[str]:
        """hear REPLICA: its summary reaches the search. hear -REPLICA: it cannot be reached."""
        assert self._search is not None
        name = words[0].removeprefix("-")
        if words[0].startswith("-"):
            self._search.summary_failed(name)
        else:
            self._search.summary(self._cores[name].summary(EPOCH))
        return [self._decision(self._search.decide())]

    def do_hedge(self, words: list[str]) -> list[str]:
        """hedge: the leg under way is slow."""
        assert self._search is not None
        assert not words
        leg = self._search.hedge()
        return ["nobody left"] if leg is None else [self._sent(leg)]

    def _sent(self, leg: Leg) -> str:
        self._legs[leg.replica.replica_id] = leg
        holders = f" from {','.join(leg.holders)}" if leg.holders else ""
        return f"{leg.role} leg to {leg.replica.replica_id} require {text_of(leg.require)}{holders}"

    def _decision(self, decision: Decision) -> str:
        if isinstance(decision, Leg):
            return self._sent(decision)
        if isinstance(decision, Accept):
            return f"accept answer {decision.answer}"
        if isinstance(decision, FreshRound):
            assert self._search is not None
            self._search.begin_round()
            return "fresh round"
        return f"unavailable: {decision.reason}" if isinstance(decision, Unavailable) else "wait"

    def do_write(self, words: list[str]) -> list[str]:
        """write BATCH: send it to every voter."""
        assert self._members is not None
        self._write = WriteRound(self._members, self._batches[words[0]])
        return self.do_send([voter.replica_id for voter in self._write.retryable()])

    def do_send(self, words: list[str]) -> list[str]:
        """send REPLICA...: another attempt."""
        assert self._write is not None
        for name in words:
            self._write.sent(name)
        return [f"sent to {','.join(words)}"]

    def do_arrive(self, words: list[str]) -> list[str]:
        """arrive REPLICA...: the batch arrives, is applied if it may be, and the answer gets back."""
        assert self._write is not None
        for name in words:
            transaction = Transaction(self._disks[name])
            (status,) = self._cores[name].apply([(self._write.batch, EPOCH)], NOW_MS, transaction)
            transaction.commit()
            self._cores[name].committed()
            self._write.on_reply(name, status)
        return self._written()

    def do_lose(self, words: list[str]) -> list[str]:
        """lose REPLICA...: no answer. lose -REPLICA: it certainly never left."""
        assert self._write is not None
        for word in words:
            self._write.on_failure(word.removeprefix("-"), definite=word.startswith("-"))
        return self._written()

    def _written(self) -> list[str]:
        assert self._write is not None
        again = ",".join(voter.replica_id for voter in self._write.retryable()) or "nobody"
        return [
            f"{self._write.vote.name}, {self._write.acks} acks; ended now: {self._write.outcome().name}; again: {again}"
        ]

    def _start(self, name: str) -> None:
        disk = self._disks[name]
        self._cores[name] = ReplicaCore(name, EPOCH, disk.applied_set, disk.hlc_max)


def version_of(word: str) -> Version:
    """`@10` is ten milliseconds after NOW_MS, by writer 1; `@10.2` by writer 2."""
    at_ms, _, source = word.removeprefix("@").partition(".")
    return Version(pack(NOW_MS + int(at_ms)), int(source or 1))


def millis(version: Version) -> str:
    """The inverse of `version_of`, without the @."""
    at_ms = (version.hlc >> 16) - NOW_MS
    return f"{at_ms}" if version.source == 1 else f"{at_ms}.{version.source}"


def gtid_of(word: str) -> Gtid:
    """`1:7`: source 1, seq 7."""
    source, seq = word.split(":")
    return Gtid(int(source), int(seq))


def set_of(word: str) -> GtidSet:
    """`1:1,1:2`, or `-` for nothing."""
    return GtidSet.of(*(gtid_of(part) for part in word.split(","))) if word != "-" else GtidSet.EMPTY


def text_of(gtids: GtidSet) -> str:
    """The inverse of `set_of`."""
    return ",".join(f"{gtid.source}:{gtid.seq}" for gtid in gtids) or "-"
