"""`make loadtest` against a real mesh: exit 0 under a generous SLO, 1 under an impossible one, 2 for a mistake."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from loadtest.samples import read_samples
from tests.mesh import Mesh

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SLO = """
[load]
collection = "docs"
deadline_ms = 10000
[load.mix]
search = 0.8
ask = 0.1
upsert = 0.1
[[phases]]
name = "baseline"
duration_s = 3
rate_per_s = 5
[[phases]]
name = "burst"
duration_s = 2
rate_per_s = 25
[[phases]]
name = "recovery"
duration_s = 3
rate_per_s = 5
[[objectives]]
phase = "burst"
operation = "search"
percentile = 95
latency_ms_max = {latency_ms_max}
samples_min = 20
failures_ratio_max = 0.0
"""


async def loadtest(mesh: Mesh, tmp_path: Path, slo: str) -> tuple[int, str, str]:
    """Exit code, standard output and error of one run."""
    (tmp_path / "slo.toml").write_text(slo, encoding="utf-8")
    arguments = ["--slo", str(tmp_path / "slo.toml"), "--mesh-file", str(mesh.config.path), "--reports", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "loadtest",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def test_a_generous_slo_is_met_and_every_sample_leads_to_its_trace(mesh: Mesh, tmp_path: Path) -> None:
    code, output, errors = await loadtest(mesh, tmp_path, SLO.format(latency_ms_max=10_000))
    assert code == 0, output + errors
    assert "p95 search in burst" in output
    assert "was observed to be met" in output
    directory = Path(output.partition("raw samples: ")[2].partition("/samples.jsonl")[0])
    report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"] == "met"
    assert report["failures"] == {}
    samples = list(read_samples(directory / "samples.jsonl"))
    slowest = max((sample for sample in samples if sample.operation == "ask"), key=lambda sample: sample.latency_ms)
    names = {span.name for span in mesh.spans(slowest.trace_id)}
    assert "ostraka.v1.RouterService/Ask" in names
    assert set(mesh.supervisor.running()) == set(mesh.supervisor.seats), "a running mesh is left alone"
    async with mesh.client("docs") as client:
        assert len((await client.get([f"loadtest-writer-{i}" for i in range(200)])).missing) == 200


async def test_an_impossible_slo_is_breached(mesh: Mesh, tmp_path: Path) -> None:
    code, output, errors = await loadtest(mesh, tmp_path, SLO.format(latency_ms_max=0.001))
    assert code == 1, output + errors
    assert "SLO BREACHED, observed in this run" in output
    assert "breached: over the limit" in output


async def test_a_mistake_in_the_slo_file_is_named(mesh: Mesh, tmp_path: Path) -> None:
    code, _, errors = await loadtest(mesh, tmp_path, SLO.format(latency_ms_max=-1))
    assert code == 2
    assert errors.strip().endswith("objectives[0].latency_ms_max must be above 0, not -1.0")
    code, _, errors = await loadtest(mesh, tmp_path, SLO.format(latency_ms_max=10).replace('"docs"', '"nowhere"'))
    assert code == 2
    assert "no [collections.nowhere]" in errors
