"""Which record store a mesh uses."""

from __future__ import annotations

from services.runtime.config import Config
from services.runtime.record_file import FileRecordStore
from services.runtime.record_store import RecordStore


def open_record_store(config: Config) -> RecordStore:
    """The store that the mesh file names."""
    return FileRecordStore(config)
