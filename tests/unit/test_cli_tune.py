"""`ostraka tune`: what it proposes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ostraka.cli.main import app


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, np.random.default_rng(3).standard_normal((1_200, 8)).astype(np.float32))
    return path


def test_a_proposal_with_plot_and_json(vectors: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot, output = tmp_path / "curve.svg", tmp_path / "curve.json"
    given = ["tune", "--vectors", str(vectors), "--kind", "ivf-sq8", "--plot", str(plot), "--output", str(output)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert "<svg" in plot.read_text()
    (proposal,) = json.loads(output.read_text())
    assert proposal["rows"] == 1_200
    assert proposal["settings"]["recall"] >= 0.99
    assert [line["effort"] for line in proposal["curve"]] == sorted({line["effort"] for line in proposal["curve"]})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "exactly one of"),
        (["--vectors", "FILE", "--replica", "."], "exactly one of"),
        (["--vectors", "FILE", "--recall", "1.0"], "between 0 and 1"),
        (["--vectors", "FILE", "--kind", "flat"], "nothing to tune"),
        (["--vectors", "FILE", "--plot", "curve.txt"], ".png or .svg"),
        (["--vectors", "absent.npy"], "cannot be read"),
        (["--replica", "absent"], "no sealed segment"),
    ],
)
def test_what_contradicts_itself_is_refused(vectors: Path, given: list[str], said: str) -> None:
    arguments = [str(vectors) if word == "FILE" else word for word in given]
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["tune", *arguments])
    assert result.exit_code == 2
    assert said in result.output


def test_few_rows_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.eye(9, dtype=np.float32))
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["tune", "--vectors", str(tmp_path / "few.npy")])
    assert result.exit_code == 2
    assert "9 rows" in result.output
