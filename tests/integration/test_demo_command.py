"""`ostraka demo` as people run it: a process of its own, that leaves none behind."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.mesh import eventually

pytestmark = [pytest.mark.processes, pytest.mark.slow]

COMMAND = (sys.executable, "-c", "from ostraka.cli.main import main; main()", "demo")


async def start(directory: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        "--directory",
        str(directory),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # Shells start what runs in the background with interruptions ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def processes_of(directory: Path) -> list[int]:
    """Processes of the mesh in that directory."""
    mesh_file = str(directory / "mesh.toml")
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if mesh_file in (process.info["cmdline"] or []):
            found.append(process.pid)
    return found


@pytest.mark.timeout(600)
async def test_every_check_holds_and_nothing_stays(tmp_path: Path) -> None:
    demo = await start(tmp_path / "demo", "--json")
    out, err = await demo.communicate()
    assert demo.returncode == 0, err.decode()[-4_000:]
    report = json.loads(out)
    claims = "\n".join(report["checks"])
    assert report["ok"]
    assert "the same passages in the same versions and order as before the kill" in claims
    assert "the new text answers at once" in claims
    assert "caught up" in claims
    assert len(report["answers"]) == 6
    assert processes_of(tmp_path / "demo") == []


@pytest.mark.parametrize("running", [1, 6], ids=["while-they-start", "when-all-run"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interruption_stops_what_was_started(tmp_path: Path, number: signal.Signals, running: int) -> None:
    directory = tmp_path / "demo"
    demo = await start(directory)
    await eventually(lambda: len(processes_of(directory)) >= running, 60, f"{running} of the processes run")
    demo.send_signal(number)
    out, err = await asyncio.wait_for(demo.communicate(), 60)
    assert demo.returncode == 130, f"{out.decode()[-2_000:]}\n{err.decode()[-2_000:]}"
    assert processes_of(directory) == []
