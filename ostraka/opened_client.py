"""What every call of a client shares: addresses, certificates, session, deadline, an open connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ostraka.connection import Connection, Deadline
from ostraka.credentials import IDENTITY_DEFAULT, Credentials
from ostraka.errors import ClientStateError, InvalidRequest, WriteRefused, WriteUncertain
from ostraka.results import Outcome, WriteResult
from ostraka.retry import RetryPolicy
from ostraka.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Limits and defaults of one client."""

    timeout_s: float = 10.0
    """Deadline of a call that names none."""
    ask_timeout_s: float = 60.0
    """The same for `ask`, which waits for a language model."""
    message_bytes_max: int = 16 * 1024 * 1024
    retry: RetryPolicy = field(default_factory=RetryPolicy)


class OpenedClient:
    """The part of a client that has no calls."""

    def __init__(
        self,
        addresses: Sequence[str] | str,
        *,
        certs: Path | str | None = None,
        identity: str = IDENTITY_DEFAULT,
        credentials: Credentials | None = None,
        collection: str = "docs",
        session_token: bytes = b"",
        options: ClientOptions | None = None,
    ) -> None:
        """`addresses` are routers as HOST:PORT, used in turn; name either a `certs` directory or `credentials`.

        Raises CertificateError for unreadable files, InvalidRequest when an argument is missing.
        """
        self._addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
        if not self._addresses:
            raise InvalidRequest("addresses: at least one router is needed", field="addresses")
        if (certs is None) == (credentials is None):
            raise InvalidRequest("name either a certs directory or credentials", field="certs")
        self._credentials = credentials or Credentials.from_directory(Path(certs or ""), identity)
        self._options = options or ClientOptions()
        self._session = Session(session_token)
        self._connection: Connection | None = None
        self._closed = False
        self.collection = collection

    @classmethod
    async def connect(cls, addresses: Sequence[str] | str, **arguments: Any) -> Self:
        """An opened client; the arguments are the constructor's. The caller must `close` it."""
        return await cls(addresses, **arguments).__aenter__()

    async def __aenter__(self) -> Self:
        if self._connection is not None or self._closed:
            raise ClientStateError("a client is opened once; make another")
        self._connection = Connection(
            self._addresses, self._credentials, self._options.retry, self._options.message_bytes_max
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is under way and close the channels; a second time does nothing."""
        connection, self._connection, self._closed = self._connection, None, True
        if connection is not None:
            await connection.close()

    @property
    def session_token(self) -> bytes:
        """What this client has written and seen; hand it to another client to continue its session."""
        return self._session.token

    @property
    def _open(self) -> Connection:
        if self._connection is None:
            raise ClientStateError(
                "this client is closed" if self._closed else "open the client first: async with Client(...) as client"
            )
        return self._connection

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._options.timeout_s if timeout_s is None else timeout_s)

    def _name(self, collection: str | None) -> str:
        return self.collection if collection is None else collection


def request_of(kind: Any, **fields: Any) -> Any:
    """A message of the contract. Raises InvalidRequest for what its types cannot hold, such as k = -1."""
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        culprit = next((name for name, value in fields.items() if not _fits(kind, name, value)), "")
        raise InvalidRequest(f"{culprit or kind.__name__}: {error}", field=culprit) from error


def _fits(kind: Any, name: str, value: Any) -> bool:
    try:
        kind(**{name: value})
    except (TypeError, ValueError):
        return False
    return True


def checked(result: WriteResult, check: bool) -> WriteResult:
    if not check or result.acknowledged:
        return result
    for outcome, kind in ((Outcome.UNCERTAIN, WriteUncertain), (Outcome.REFUSED, WriteRefused)):
        if documents := result.having(outcome):
            first = documents[0]
            raise kind(
                f"{len(documents)} of {len(result.documents)} documents {outcome.name}; "
                f"first {first.document_id!r} at version {first.version}: {first.reason}",
                result,
            )
    raise AssertionError("a result that is not acknowledged has an outcome that says why")
