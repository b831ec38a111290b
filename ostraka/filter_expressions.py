"""Conditions written as text: `year >= 2020 and lang in ("en", "de") and not draft = true`.

    expression   conjunction { "or" conjunction }
    conjunction  term { "and" term }
    term         "not" term | "(" expression ")" | test
    test         field sign value | field [ "not" ] "in" "(" value { "," value } ")"
    sign         = == != < <= > >=
    value        "text" | 'text' | 42 | -1.5e3 | true | false

Words may be written in capitals. In texts, a backslash stands before a quote, itself, n, t or uXXXX. `not` binds
closest, then `and`, then `or`. Every error says at which column, counted from 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from ostraka import filters
from ostraka.errors import InvalidRequest
from ostraka.filters import COMPARISONS, Field, Filter, FilterLike, all_of, any_of, to_value
from ostraka.results import MetadataScalar
from ostraka.v1 import passage_pb2

DEPTH_MAX: Final = 32
CHARS_MAX: Final = 65_536
_WORDS: Final = frozenset({"and", "or", "not", "in", "true", "false"})
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
      | (?P<number>[+-]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<name>[^\W\d]\w*)
      | (?P<sign><=|>=|!=|==|=|<|>)
      | (?P<mark>[(),])
      | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "t": "\t", "\\": "\\", '"': '"', "'": "'"}


class FilterSyntaxError(InvalidRequest):
    """The text is no condition; the message shows where it stops being one."""

    def __init__(self, problem: str, text: str, column: int) -> None:
        shown, offset = _window(text, column)
        super().__init__(f"column {column}: {problem}\n  {shown}\n  {' ' * offset}^", field="where")
        self.column = column
        """From 1."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    """number, name, word, sign, mark, text, end"""
    text: str
    column: int

    @property
    def shown(self) -> str:
        return "the end" if self.kind == "end" else repr(self.text)


def parse_filter(text: str) -> Filter:
    """The condition that `text` states. Raises FilterSyntaxError."""
    if len(text) > CHARS_MAX:
        raise FilterSyntaxError(f"the expression is longer than {CHARS_MAX} characters", text, CHARS_MAX + 1)
    parser = _Parser(text, _tokens(text))
    found = parser.expression(1)
    if parser.next.kind != "end":
        parser.fail(f"expected and, or, or the end, not {parser.next.shown}")
    return found


class _Parser:
    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self._text, self._tokens, self._at = text, tokens, 0

    @property
    def next(self) -> _Token:
        return self._tokens[self._at]

    def expression(self, depth: int) -> Filter:
        if depth > DEPTH_MAX:
            self.fail(f"nested more than {DEPTH_MAX} deep")
        parts = [self._conjunction(depth)]
        while self._skip("word", "or"):
            parts.append(self._conjunction(depth))
        return any_of(parts)

    def fail(self, problem: str, at: _Token | None = None) -> NoReturn:
        raise FilterSyntaxError(problem, self._text, (at or self.next).column)

    def _conjunction(self, depth: int) -> Filter:
        parts = [self._term(depth)]
        while self._skip("word", "and"):
            parts.append(self._term(depth))
        return all_of(parts)

    def _term(self, depth: int) -> Filter:
        if depth > DEPTH_MAX:
            self.fail(f"nested more than {DEPTH_MAX} deep")
        if self._skip("word", "not"):
            return ~self._term(depth + 1)
        if self._skip("mark", "("):
            inner = self.expression(depth + 1)
            self._expect("mark", ")")
            return inner
        return self._test()

    def _test(self) -> Filter:
        name = self.next
        if name.kind != "name":
            self.fail(f"expected a field, not or (, not {name.shown}")
        self._at += 1
        field, sign = Field(name.text), self.next
        if self._skip("word", "in"):
            return self._one_of(field)
        if self._skip("word", "not"):
            self._expect("word", "in")
            return ~self._one_of(field)
        if sign.kind != "sign":
            self.fail(f"expected a comparison such as = or >=, or in, after {name.text}, not {sign.shown}")
        self._at += 1
        return COMPARISONS[sign.text](field, self._value(field, f"after {sign.text}"))

    def _one_of(self, field: Field) -> Filter:
        self._expect("mark", "(")
        values = [self._value(field, "in the list")]
        while self._skip("mark", ","):
            values.append(self._value(field, "after the comma"))
        self._expect("mark", ")")
        return field.is_in(values)

    def _value(self, field: Field, where: str) -> MetadataScalar:
        token = self.next
        value: MetadataScalar
        if token.kind == "text":
            value = self._unquoted(token)
        elif token.kind == "number":
            value = int(token.text) if re.fullmatch(r"[+-]?\d+", token.text) else float(token.text)
        elif token.kind == "word" and token.text.lower() in ("true", "false"):
            value = token.text.lower() == "true"
        else:
            hint = "; texts stand in quotes" if token.kind == "name" else ""
            self.fail(f"expected a value {where}, not {token.shown}{hint}")
        try:
            to_value(value, field.name)
        except InvalidRequest as error:
            self.fail(str(error))
        self._at += 1
        return value

    def _unquoted(self, token: _Token) -> str:
        def replaced(match: re.Match[str]) -> str:
            escape = match[1]
            if escape[0] == "u" and len(escape) == 5 and not 0xD800 <= int(escape[1:], 16) < 0xE000:
                return chr(int(escape[1:], 16))
            if escape not in _ESCAPES:
                at = _Token("text", "", token.column + 1 + match.start())
                self.fail(f"{match[0]} is no escape; known: \\n \\t \\\\ \\\" \\' \\uXXXX", at)
            return _ESCAPES[escape]

        return _ESCAPE.sub(replaced, token.text[1:-1])

    def _skip(self, kind: str, text: str) -> bool:
        found = self.next.kind == kind and self.next.text.lower() == text
        self._at += found
        return found

    def _expect(self, kind: str, text: str) -> None:
        if not self._skip(kind, text):
            self.fail(f"expected {text}, not {self.next.shown}")


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            quoted = text[at] in "\"'"
            problem = "this quote is never closed" if quoted else f"{text[at]!r} has no meaning here"
            if text[at].isdigit() or text[at] in "+-.":
                problem = "this is not a number"
            raise FilterSyntaxError(problem, text, at + 1)
        kind = str(match.lastgroup)
        if kind == "name" and match[0].lower() in _WORDS:
            kind = "word"
        if kind != "space":
            found.append(_Token(kind, match[0], at + 1))
        at = match.end()
    return [*found, _Token("end", "", len(text) + 1)]


def _window(text: str, column: int, width: int = 72) -> tuple[str, int]:
    """(one line of the text around a column, the column's place in it)"""
    start = max(0, column - 1 - width // 2)
    line = "".join(letter if letter.isprintable() else " " for letter in text[start : start + width])
    return line, column - 1 - start


def filter_to_proto(where: FilterLike | None) -> passage_pb2.Filter | None:
    """The message of a condition in any of its forms. Raises InvalidRequest."""
    if where is None:
        return None
    if isinstance(where, str):
        return parse_filter(where).to_proto()
    if isinstance(where, Mapping):
        return filters.where(where).to_proto()
    return where.to_proto()
