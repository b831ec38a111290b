"""One reader per format; `READERS` says which suffix goes to which."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ostraka.ingest.blocks import Extract
from ostraka.ingest.readers.html import read_html
from ostraka.ingest.readers.markdown import read_markdown
from ostraka.ingest.readers.plain import read_plain
from ostraka.ingest.readers.python import read_python
from ostraka.ingest.readers.rst import read_rst

READERS: Mapping[str, Callable[[str], Extract]] = {
    ".txt": read_plain,
    ".md": read_markdown,
    ".html": read_html,
    ".rst": read_rst,
    ".py": read_python,
}
"""Suffix -> reader. `.jsonl` holds many documents in one file and is read by `sources`."""
