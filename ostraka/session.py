"""A caller's session token: an opaque value that the mesh makes and this client keeps.

A reply to a read covers the token it was asked with, so it replaces that one. But the calls of one client
overlap, and a write's reply speaks of that write alone; so tokens that no later reply covers yet are kept side
by side. Tokens join by concatenation: the mesh reads a sequence of them as their union.
"""

from __future__ import annotations

from collections.abc import Sequence


class Session:
    """Tokens seen and not yet folded into a newer one; used from one event loop."""

    def __init__(self, token: bytes = b"") -> None:
        self._tokens: tuple[bytes, ...] = (token,) if token else ()

    @property
    def tokens(self) -> tuple[bytes, ...]:
        """All that this session has written and seen, as a value to hand back to `absorb`."""
        return self._tokens

    @property
    def token(self) -> bytes:
        """The same as one token."""
        return b"".join(self._tokens)

    def add(self, token: bytes) -> None:
        """Keep a write's token beside the others."""
        self.absorb((), token)

    def absorb(self, sent: Sequence[bytes], returned: bytes) -> None:
        """A call that carried `sent` returned `returned`, which covers it."""
        if returned:
            self._tokens = tuple(dict.fromkeys((*(t for t in self._tokens if t not in sent), returned)))
