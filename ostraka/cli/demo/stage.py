"""Where the demonstration speaks: numbered steps, and checks that must hold."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.rule import Rule

from ostraka.cli.output import CONSOLE


class DemoFailedError(RuntimeError):
    """Something that the demonstration promises did not happen."""


@dataclass(slots=True)
class Stage:
    """The story so far."""

    checks: list[str] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)
    _steps: int = 0

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._steps += 1
        CONSOLE.print()
        CONSOLE.print(Rule(f"{self._steps}. {title}  ({self.elapsed_s:.0f} s)", align="left"))

    def say(self, text: str) -> None:
        CONSOLE.print(text, markup=False, soft_wrap=True)

    def check(self, holds: bool, claim: str, otherwise: str = "") -> None:
        """State a claim that holds. Raises DemoFailedError when it does not."""
        if not holds:
            raise DemoFailedError(f"not so: {claim}" + (f" ({otherwise})" if otherwise else ""))
        self.checks.append(claim)
        CONSOLE.print(f"  checked: {claim}", style="green", markup=False)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began_s
