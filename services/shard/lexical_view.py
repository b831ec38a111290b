"""A view as lexical search and the lexical writer see it."""

from __future__ import annotations

from services.shard.lexical_part import LexicalPart
from services.shard.lexical_segment import LexicalSource
from services.shard.view import View


def lexical_parts(view: View) -> tuple[LexicalPart, ...]:
    """The delta and each segment, numbered as in `view_search.part_names`."""
    delta = view.delta
    first = LexicalPart(0, delta.lexical.runs, delta.lexical.lengths, delta.rids, delta.alive, delta.live)
    sealed = (
        LexicalPart(
            number,
            (part.segment.lexical.postings,),
            part.segment.lexical.lengths,
            part.segment.rids,
            part.alive,
            part.live,
            part.segment.order,
        )
        for number, part in enumerate(view.parts, start=1)
    )
    return (first, *sealed)


def lexical_sources(view: View) -> tuple[LexicalSource, ...]:
    """Where a new segment finds the postings of any live row of this view."""
    return tuple(LexicalSource(part.runs, part.lengths, part.rids) for part in lexical_parts(view))
