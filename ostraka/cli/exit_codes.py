"""What the exit code of a command means, and which error gives which.

0    done
1    failed: a write was not acknowledged, something asked for does not exist, an assertion or limit was broken
2    wrong arguments, mesh file, certificates or request
3    the mesh, or too much of it, cannot be reached in time
4    the mesh refuses this certificate
130  interrupted
"""

from __future__ import annotations

from enum import IntEnum

from ostraka.cli.supervisor import SupervisorError
from ostraka.errors import (
    CertificateError,
    DeadlineExceeded,
    NotFound,
    PermissionDenied,
    RequestError,
    Unauthenticated,
    Unavailable,
)
from services.runtime.config import ConfigError
from services.shard.object_store import BadDestinationError
from services.shard.snapshot_format import RestoreRefusedError


class ExitCode(IntEnum):
    """See the module's table."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    REFUSED = 4
    INTERRUPTED = 130


EXIT_CODE_OF: tuple[tuple[type[Exception], ExitCode], ...] = (
    (ConfigError, ExitCode.USAGE),
    (CertificateError, ExitCode.USAGE),
    (PermissionDenied, ExitCode.REFUSED),
    (Unauthenticated, ExitCode.REFUSED),
    (NotFound, ExitCode.FAILED),
    (RequestError, ExitCode.USAGE),
    (Unavailable, ExitCode.UNAVAILABLE),
    (DeadlineExceeded, ExitCode.UNAVAILABLE),
    (SupervisorError, ExitCode.FAILED),
    (BadDestinationError, ExitCode.USAGE),
    (RestoreRefusedError, ExitCode.USAGE),
)
"""The first that fits counts."""


def exit_code_of(error: Exception) -> ExitCode:
    """The exit code for an error that ends a command."""
    return next((code for kind, code in EXIT_CODE_OF if isinstance(error, kind)), ExitCode.FAILED)
