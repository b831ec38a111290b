"""Saying that there is no answer, in one fixed sentence that can be recognised again. Pure."""

from __future__ import annotations

import re

ABSTENTION = "I cannot answer this from the passages I was given."
"""What the model is told to reply, and what both backends say themselves."""

NO_PASSAGES = "no_passages"
NO_SUPPORT = "no_support"
"""Finish reasons of an abstention that no model was asked about."""

_WORDS = re.compile(r"[a-z]+")


def is_abstention(text: str) -> bool:
    """Whether an answer begins with the sentence, up to case, quotes and punctuation.

    What follows it does not matter: models like to explain what the passages are about instead.
    """
    wanted = _WORDS.findall(ABSTENTION.lower())
    return _WORDS.findall(text.lower())[: len(wanted)] == wanted
