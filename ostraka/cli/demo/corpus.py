"""Documents that every machine with Python has: the language reference and the standard library's docstrings.

Read, never imported or executed: the sources are parsed. The same interpreter gives the same documents.
"""

from __future__ import annotations

import ast
import inspect
import json
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

# Modules whose docstrings explain themselves to a reader of questions.
MODULES = (
    "argparse", "asyncio/locks", "asyncio/queues", "asyncio/runners", "asyncio/taskgroups", "asyncio/tasks",
    "asyncio/timeouts", "base64", "bisect", "calendar", "collections/__init__", "concurrent/futures/_base",
    "configparser", "contextlib", "copy", "csv", "dataclasses", "datetime", "difflib", "enum", "fnmatch",
    "fractions", "functools", "glob", "gzip", "hashlib", "heapq", "hmac", "json/__init__", "json/decoder",
    "json/encoder", "logging/__init__", "operator", "os", "pathlib", "pickle", "pprint", "queue", "random",
    "re/__init__", "secrets", "shelve", "shlex", "shutil", "statistics", "string", "subprocess", "tempfile",
    "textwrap", "threading", "timeit", "tokenize", "traceback", "types", "urllib/parse", "uuid", "warnings",
    "weakref", "zipfile",
)  # fmt: skip
TOPICS_OMITTED = frozenset(("compound", "specialnames", "types"))
"""Whole chapters whose parts are topics of their own; twice the same passage would answer twice."""
DOCSTRING_WORDS_MIN = 30
"""A shorter docstring only repeats the name."""
NOTICE_ID = "notices/reading-room.md"
"""The document that the demonstration replaces."""
NOTICE_BEFORE = "# The reading room\n\nThe reading room of the Ostraka archive opens at nine o'clock in the morning.\n"
NOTICE_AFTER = "# The reading room\n\nThe reading room of the Ostraka archive opens at half past ten in the morning.\n"


def write_corpus(directory: Path) -> list[Path]:
    """Write the documents below `directory` and return the folders to ingest."""
    reference = directory / "reference"
    library = directory / "stdlib"
    notices = directory / "notices"
    for folder in (reference, library, notices):
        folder.mkdir(parents=True, exist_ok=True)
    write_notice(directory, NOTICE_BEFORE)
    for name, text in topics.topics.items():
        if name not in TOPICS_OMITTED:
            (reference / f"{name}.rst").write_text(text, encoding="utf-8")
    with (library / "docstrings.jsonl").open("w", encoding="utf-8") as file:
        for name, docstring in _docstrings():
            record = {"_id": f"stdlib/{name}", "title": name, "text": docstring}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return [reference, library, notices]


def write_notice(directory: Path, text: str) -> Path:
    """Write the one document that changes; the folder to ingest again."""
    path = directory / NOTICE_ID
    path.write_text(text, encoding="utf-8")
    return path.parent


def _docstrings() -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of every public module, class and function; the first of equal names."""
    seen: set[str] = set()
    root = Path(sysconfig.get_paths()["stdlib"])
    for module in MODULES:
        path = root / f"{module}.py"
        if not path.is_file():  # modules come and go between versions of Python
            continue
        name = module.removesuffix("/__init__").replace("/", ".")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
        for dotted, docstring in _documented(tree, name):
            if dotted not in seen and len(docstring.split()) >= DOCSTRING_WORDS_MIN:
                seen.add(dotted)
                yield dotted, docstring


def _documented(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    if docstring := ast.get_docstring(node):
        yield name, inspect.cleandoc(docstring)
    for child in node.body:
        if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or child.name.startswith("_"):
            continue
        dotted = f"{name}.{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, dotted)
        elif docstring := ast.get_docstring(child):
            yield dotted, inspect.cleandoc(docstring)
