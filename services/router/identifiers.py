"""Document and passage ids: what is well formed, and how one is made from the other.

A document id is 1 to 512 bytes of UTF-8 without control characters. A passage id is `document#ordinal`;
since a document id may itself contain `#`, the last one separates.
"""

from __future__ import annotations

import unicodedata

DOCUMENT_ID_BYTES_MAX = 512
ORDINAL_DIGITS_MAX = 6


def passage_id(document_id: str, ordinal: int) -> str:
    """The id of one passage."""
    return f"{document_id}#{ordinal}"


def document_id_problem(document_id: str) -> str:
    """What is wrong with a document id, in words that follow the field's name; empty when nothing is."""
    if not document_id:
        return "must not be empty"
    size = len(document_id.encode())
    if size > DOCUMENT_ID_BYTES_MAX:
        return f"is {size} bytes long; at most {DOCUMENT_ID_BYTES_MAX}"
    if not document_id.isprintable() and any(unicodedata.category(ch) == "Cc" for ch in document_id):
        return "contains a control character"
    return ""


def parse_passage_id(text: str) -> tuple[str, int] | str:
    """(document id, ordinal), or what is wrong, in words that follow the field's name."""
    document_id, separator, ordinal = text.rpartition("#")
    if not separator:
        return f"{text[:80]!r} is not of the form document#ordinal"
    if not ordinal.isascii() or not ordinal.isdigit() or len(ordinal) > ORDINAL_DIGITS_MAX:
        return f"{text[:80]!r} does not end in an ordinal"
    if ordinal != str(int(ordinal)):
        return f"{text[:80]!r} has an ordinal with leading zeros"
    if problem := document_id_problem(document_id):
        return f"names a document whose id {problem}"
    return document_id, int(ordinal)
