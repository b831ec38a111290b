"""Scenario files: prose, then blocks of a command, `----`, and what it must print.

The commands drive the production classes by hand, one message at a time, so that a schedule which chance would need
thousands of seeds for is a text that can be read. `python -m tests.scenarios --rewrite` writes the outputs anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.scenarios.stage import Stage

FOLDER = Path(__file__).parent
Command = Callable[[list[str]], list[str]]


def files() -> list[Path]:
    """Every scenario."""
    return sorted(FOLDER.glob("*.txt"))


def replay(text: str) -> str:
    """The scenario with the outputs that its commands print now. Raises ValueError on an unknown command."""
    prose, *blocks = text.rstrip("\n").split("\n\n")
    while blocks and "----" not in blocks[0].split("\n"):
        prose += "\n\n" + blocks.pop(0)
    stage = Stage()
    done = [prose]
    for block in blocks:
        lines = block.split("\n")
        if "----" not in lines:
            done.append(block)
            continue
        commands = lines[: lines.index("----")]
        printed = [line for command in commands if not command.startswith("#") for line in _run(stage, command)]
        done.append("\n".join([*commands, "----", *(printed or ["ok"])]))
    return "\n\n".join(done) + "\n"


def _run(stage: Stage, command: str) -> list[str]:
    name, *arguments = command.split()
    action: Command | None = getattr(stage, f"do_{name}", None)
    if action is None:
        raise ValueError(f"no command {name!r} in {command!r}")
    return action(arguments)
