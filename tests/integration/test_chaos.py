"""A minute of `make chaos`: real processes in network namespaces, killed, stopped, parted, slowed, filled, misdated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import sandbox

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(600)]

SEED = 20_261_124
VOLUME = 0.2
"""How much a machine that runs other tests too gets done says nothing of the mesh."""
ROOT = Path(__file__).parents[2]


def test_a_minute_of_chaos() -> None:
    if why := sandbox.unavailable():
        pytest.skip(f"network namespaces cannot be made here: {why}")
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "1", "--seed", str(SEED), "--volume", str(VOLUME)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
