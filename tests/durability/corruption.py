"""A bit flips, a file is cut or gone: what the replica answers then is right, or it refuses; a peer makes it whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.quorum.gtid import GtidSet
from services.quorum.rows import HeadRow
from services.shard import search
from services.shard.damage import DamagedRowError, PartDamagedError
from services.shard.engine import Engine, ReplicaFailedError
from services.shard.scrub import Scrub
from services.shard.store import StoreError
from tests.durability.disk import Disk, Image, Loss
from tests.durability.judge import written
from tests.durability.workload import EPOCH, REPLICA, WAIT_S, Known, Workload, open_engine
from tests.unit.shard_rows import DIM, FixedClock

ROUNDS = 4
QUERIES = 6
SCORE_TOLERANCE = 2e-3
MEND_ROUNDS = 4
REFUSALS = (StoreError, DamagedRowError, PartDamagedError, search.ViewExpiredError, ReplicaFailedError)


@dataclass(frozen=True, slots=True)
class Subject:
    """A replica's files, and what is in them."""

    image: Image
    known: Known

    @classmethod
    def make(cls, directory: Path, seed: int, *, log: bool) -> Subject:
        """`log`: with a log that has not been moved into the database; it hides most of the database's pages."""
        (directory / REPLICA).mkdir(parents=True)
        load = Workload(directory, seed)
        load.open()
        load.run(ROUNDS)
        load.write(2)
        if not log:
            load.close()
        disk = Disk(directory)
        image = disk.image(Loss.NONE, random.Random(seed))
        disk.close()
        if log:
            load.close()
        kept = {path: data for path, data in image.entries.items() if path.split("/")[0] == REPLICA}
        return cls(Image(kept), load.known())

    def files(self) -> list[str]:
        return [path for path, data in self.image.entries.items() if data]


@dataclass(frozen=True, slots=True)
class Damage:
    """What is done to one file, before the replica is opened or while it is open."""

    path: str
    what: str
    opened: bool
    offset: int = 0
    bit: int = 0

    def inflict(self, root: Path) -> None:
        path = root / self.path
        if self.what == "missing":
            path.unlink()
        elif self.what == "cut":
            with path.open("r+b") as file:
                file.truncate(self.offset)
        else:
            with path.open("r+b") as file:
                file.seek(self.offset)
                byte = file.read(1)[0] ^ (1 << self.bit)
                file.seek(self.offset)
                file.write(bytes([byte]))

    def __str__(self) -> str:
        when = "while open" if self.opened else "before opening"
        return f"{self.path} {self.what} at byte {self.offset} bit {self.bit} {when}"


def random_flip(subject: Subject, random_: random.Random, *, opened: bool) -> Damage:
    """One bit of any file: every other time any byte of all, so that the database is not spared."""
    files = subject.files()
    sizes = [len(subject.image.entries[path] or b"") for path in files]
    (path,) = random_.choices(files, sizes if random_.random() < 0.5 else None)
    size = len(subject.image.entries[path] or b"")
    return Damage(path, "bit", opened, random_.randrange(size), random_.randrange(8))


def survives(subject: Subject, damage: Damage, root: Path, peer: Engine) -> tuple[list[str], str]:
    """(everything served that is wrong, how it ended: "refused", "repaired", "behind", "unharmed")."""
    subject.image.write_to(root)
    if not damage.opened:
        damage.inflict(root)
    fatal: list[str] = []
    try:
        engine = open_engine(root, FixedClock(), fatal.append)
    except REFUSALS:
        return [], "refused"
    try:
        if damage.opened:
            damage.inflict(root)
        wrong = answers_wrong(engine, subject.known)
        behind = engine.view.applied != peer.view.applied
        found = _made_whole(engine, peer)
        if fatal or engine.failure:
            return wrong, "refused"
        if engine.damaged or engine.ledger.parts or engine.view.applied != peer.view.applied:
            wrong.append(f"not repaired: {sorted(map(str, engine.damaged))[:3]} {engine.ledger.parts}")
        wrong += [f"after the repair: {each}" for each in answers_wrong(engine, subject.known)]
        return wrong, "repaired" if found else "behind" if behind else "unharmed"
    finally:
        _close(engine)


def _close(engine: Engine) -> None:
    try:
        engine.close()
    except StoreError:
        return


def _made_whole(engine: Engine, peer: Engine) -> bool:
    """Check and repair as a node does it; whether anything was found."""
    scrub = Scrub(engine)
    try:
        for _ in range(MEND_ROUNDS):
            _pull(engine, peer, peer.view.applied.difference(engine.view.applied), mending=False)
            scrub.run_once()
            for name in engine.damaged:
                with engine.readers.lend() as reader:
                    by = reader.ops_of_document if name.ordinal < 0 else None
                    ops = by(name.document_id) if by else reader.ops_of_version(name.version, name.document_id)
                _pull(engine, peer, GtidSet.of(*ops), mending=True)
            _pull(engine, peer, engine.ledger.ops, mending=True)
    except (*REFUSALS, OSError) as error:
        engine.note_failure(error)
    return bool(engine.ledger.found)


def _pull(engine: Engine, peer: Engine, want: GtidSet, *, mending: bool) -> None:
    with peer.readers.lend() as reader, reader.database.reading():
        bundles = list(peer.core.pull(want, reader, 64))
    for bundle in bundles:
        engine.merge(bundle, mending=mending).result(WAIT_S)


def answers_wrong(engine: Engine, known: Known) -> list[str]:
    """Searches, documents and pulls compared with what was written; refusals are right."""
    if engine.failure or engine.damaged:
        return []
    expected = known.passages(engine.view.applied)
    documents = written(known, expected)
    return [
        *_or_refused(lambda: _wrong_searches(engine, documents)),
        *_or_refused(lambda: _wrong_documents(engine, documents)),
        *_or_refused(lambda: _wrong_pull(engine, documents)),
    ]


def _or_refused(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except REFUSALS:
        return []


def _wrong_searches(engine: Engine, documents: dict) -> list[str]:  # type: ignore[type-arg]
    rows = {(row.document_id, row.ordinal): row for _, passages in documents.values() for row in passages}
    queries = np.random.default_rng(1).standard_normal((QUERIES, DIM)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    wrong: list[str] = []
    for exact, k in ((True, len(rows) + 5), (False, 10)):
        task = search.SearchTask(queries, k, exact=exact, include_payload=True)
        for query, result in zip(queries, search.run(engine.view, engine.readers, task), strict=True):
            if engine.damaged or engine.ledger.parts:
                return wrong  # found on the way: the service refuses
            names = [(hit.document_id, hit.ordinal) for hit in result.hits]
            if len(names) != min(k, len(rows)) or not set(names) <= rows.keys():
                wrong.append(f"a search has {len(names)} hits, not {min(k, len(rows))}, or some that do not live")
                continue
            for name, hit in zip(names, result.hits, strict=True):
                score = float(np.frombuffer(rows[name].vector, dtype="<f2").astype(np.float32) @ query)
                if hit.payload != rows[name].payload or abs(score - hit.score) > SCORE_TOLERANCE:
                    wrong.append(f"a search serves {name} with another payload or score")
    return wrong


def _wrong_documents(engine: Engine, documents: dict) -> list[str]:  # type: ignore[type-arg]
    wrong = []
    with engine.readers.lend() as reader:
        for document_id, (head, passages) in documents.items():
            try:
                found = reader.head(document_id), reader.live_passages(document_id)
            except DamagedRowError:
                continue
            if found != (head, passages):
                wrong.append(f"document {document_id} is served as {found[0]} with {len(found[1])} passages")
        for head in reader.heads():
            if isinstance(head, HeadRow) and head.passages and head.document_id not in documents:
                wrong.append(f"document {head.document_id} is served, which is deleted or was never written")
    return wrong


def _wrong_pull(engine: Engine, documents: dict) -> list[str]:  # type: ignore[type-arg]
    wrong = []
    with engine.readers.lend() as reader, reader.database.reading():
        for bundle in engine.core.pull(engine.view.applied, reader, 64):
            for document in bundle.documents:
                head = document.head
                if head.passages and documents.get(head.document_id) != (head, list(document.passages)):
                    wrong.append(f"a peer is given {head.document_id} as it is not")
    return wrong


def make_peer(directory: Path, known: Known) -> Engine:
    """A sound replica of the same batches."""
    (directory / REPLICA).mkdir(parents=True)
    engine = open_engine(directory, FixedClock(), lambda reason: None)
    for entry in known.issued:
        future = engine.write(entry, EPOCH)
        assert future is not None, "the queue has room"
        future.result(WAIT_S)
    return engine
