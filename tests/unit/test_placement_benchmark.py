"""The placement benchmark: a hot spot is evened out by the policy's own moves, and absent data is said, not hidden."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import placement
from benchmarks.placement_hotspot import POLICIES, THRESHOLD, Kind, Workload, run
from services.placement import kmeans
from services.placement.assignment import grouped
from services.placement.cells import Cells


def test_a_hot_topic_is_spread() -> None:
    random = np.random.default_rng(5)
    rows = random.standard_normal((3_000, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cells = Cells(kmeans.train(rows, 64, 5))
    of_rows = cells.nearest(rows)
    loads = np.bincount(of_rows, minlength=64).astype(np.float64)
    owners = grouped(cells.centroids, loads, 4, 5)
    workload = Workload(Kind.TOPIC, cells, rows, of_rows, 0.2, 5)
    made = run(workload, owners, 4, POLICIES["default"])
    assert made.before.load > THRESHOLD > made.after.load
    assert made.moves
    moved = list(owners)
    for at_s, move in made.moves:
        assert at_s >= 600
        assert moved[move.cell] == move.source
        moved[move.cell] = move.target
    assert tuple(moved) == made.owners
    assert made == run(workload, owners, 4, POLICIES["default"]), "the seed decides"


def test_absent_data_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["placement", "--data", str(tmp_path), "--out", str(tmp_path / "out.md")])
    placement.main()
    assert "sysdocs_minilm_ids.txt does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out.md").exists()
