"""Each reader finds the structure of its format."""

from __future__ import annotations

from textwrap import dedent

from ostraka.ingest.blocks import BlockKind, Extract
from ostraka.ingest.chunker import chunk
from ostraka.ingest.readers import READERS


def outline(extract: Extract) -> list[tuple[str, str]]:
    """(kind or heading level, first words) of every block."""
    return [
        (f"h{b.level}", b.title) if b.kind is BlockKind.HEADING else (b.kind.value, extract.text[b.start : b.end][:20])
        for b in extract.blocks
    ]


def test_markdown() -> None:
    text = dedent(
        """\
        ---
        author: Ada
        ---
        # The *first* [heading](x)

        A paragraph
        of two lines.

        - one
        - two
          continued

        ```python
        # not a heading

        code()
        ```

        Setext
        ------

        | a | b |
        |---|---|
        """
    )
    assert outline(READERS[".md"](text)) == [
        ("code", "---\nauthor: Ada\n---"),
        ("h1", "The first heading"),
        ("prose", "A paragraph\nof two l"),
        ("prose", "- one"),
        ("prose", "- two\n  continued"),
        ("code", "```python\n# not a he"),
        ("h2", "Setext"),
        ("code", "| a | b |\n|---|---|"),
    ]


def test_rst_levels_follow_first_appearance() -> None:
    text = dedent(
        """\
        ====
        Book
        ====

        Part
        ----

        Look::

            literal

            block

        back to prose

        Chapter
        ~~~~~~~

        text

        Next part
        ---------

        * item
        """
    )
    assert outline(READERS[".rst"](text)) == [
        ("h1", "Book"),
        ("h2", "Part"),
        ("prose", "Look::"),
        ("code", "    literal\n\n    blo"),
        ("prose", "back to prose"),
        ("h3", "Chapter"),
        ("prose", "text"),
        ("h2", "Next part"),
        ("prose", "* item"),
    ]


def test_python_by_module_class_and_function() -> None:
    text = dedent(
        '''\
        """Module."""

        import os

        # About f.
        @decorated
        def f():
            """Does f."""
            return 1

        class C:
            """A class."""

            x = 1

            def method(self):
                return 2

            y = 3

        Z = 4
        '''
    )
    pieces = [(piece.title, piece.text.split("\n")[0]) for piece in chunk(READERS[".py"](text))]
    assert pieces == [
        ("", '"""Module."""'),
        ("f()", "# About f."),
        ("C", "class C:"),
        ("C > C.method()", "    def method(self):"),
        ("C", "    y = 3"),
        ("", "Z = 4"),
    ]


def test_python_that_does_not_parse_is_read_as_lines() -> None:
    assert outline(READERS[".py"]("def broken(:\n    x\n")) == [("code", "def broken(:\n    x")]


def test_html_visible_text_with_positions_in_the_file() -> None:
    text = (
        "<html><head><title>The  Title</title><style>p{}</style></head><body><nav>menu</nav>"
        "<h1>Big <b>words</b></h1><p>One &amp; two,\n<i>three</i>.</p><script>no()</script>"
        "<ul><li>item</ul><pre>a  b\n c</pre><table><tr><td>x</td><td>y</td></tr></table></body></html>"
    )
    extract = READERS[".html"](text)
    assert extract.title == "The Title"
    assert outline(extract) == [
        ("h1", "Big words"),
        ("prose", "One & two, three."),
        ("prose", "item"),
        ("code", "a  b\n c"),
        ("prose", "x y"),
    ]
    for word in ("One", "two,", "three", "item", "c"):
        assert text[extract.position_in_file(extract.text.index(word)) :].startswith(word)


def test_unclosed_markup_loses_nothing() -> None:
    assert outline(READERS[".html"]("<p>open <b>and never closed")) == [("prose", "open and never close")]
    assert outline(READERS[".md"]("```\nnever closed\n")) == [("code", "```\nnever closed")]
