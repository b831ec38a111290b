"""Each sync in the source is needed: without it something promised is lost when the power fails.

What counts as lost: an acknowledged row, the record of the mesh, a codec that was taken, a snapshot, a restored
replica, and a published segment; the last could be built anew, but a start would take as long as building it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from services.shard.store import Database, Row, Value
from tests.durability.scenarios import STORIES, ReplicaStory, Story, first_violation, stories_for
from tests.durability.sync_sites import PRAGMA, SyncSite, pragmas, sync_sites


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_every_promise_is_kept(tmp_path: Path, story: type[Story]) -> None:
    assert first_violation(story(), tmp_path, frozenset()) == ([], 0)


@pytest.mark.parametrize("site", sync_sites(), ids=str)
def test_without_one_sync_something_is_lost(tmp_path: Path, site: SyncSite) -> None:
    skipped = 0
    for story in stories_for(site.file):
        wrong, skips = first_violation(story(), tmp_path / story.__name__, site.lines)
        skipped += skips
        if wrong and skips:
            print(f"{site}: {wrong[0]}")
            return
    assert skipped, f"no story reaches {site}"
    raise AssertionError(f"nothing is lost without {site}; either a story is missing, or the sync is not needed")


@pytest.mark.parametrize("level", ["OFF", "NORMAL"])
def test_sqlite_must_sync_each_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    assert pragmas() == [("services/shard/store.py", f"{PRAGMA}FULL")]
    rows = Database.rows

    def weaker(self: Database, sql: str, parameters: tuple[Value, ...] = ()) -> list[Row]:
        return rows(self, f"{PRAGMA}{level}" if sql.startswith(PRAGMA) else sql, parameters)

    monkeypatch.setattr(Database, "rows", weaker)
    wrong, _ = first_violation(ReplicaStory(), tmp_path, frozenset())
    assert wrong


@pytest.mark.parametrize("what", ["log", "database"])
def test_the_disk_would_notice_a_sync_that_sqlite_forgets(tmp_path: Path, what: str) -> None:
    wrong, skips = first_violation(ReplicaStory(), tmp_path, frozenset(), frozenset({what}))
    assert wrong
    assert skips
