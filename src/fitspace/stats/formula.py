"""Model formulas: `y ~ block + A*B`, read into a response and a list of terms."""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from itertools import product

from fitspace.core.errors import UserError

Term = tuple[str, ...]

_TOKEN = re.compile(r"\s*(?:(`[^`]+`|[^\W\d][\w.]*)|(\d+)|(\*\*|[-+*:/^()~]))")
_ALLOWED = (
    "allowed: `response ~ terms` with column names, + - : * / ^ ( ), C(name), `quoted name`, "
    "+ Error(terms)"
)


MOST_TERMS, MOST_NESTED = 1_100, 50
_brief = reprlib.Repr()
_brief.maxstring = 200
_short = _brief.repr


def label(term: Term) -> str:
    """Name of a term as printed in a table: ``A:B``."""
    return ":".join(term)


@dataclass(frozen=True)
class Formula:
    """A formula read: ``terms`` lowest order first as R sorts them, ``error`` those of Error().

    ``factors`` are the names that C() or Error() declare to be factors, whatever their columns
    hold.
    """

    response: str
    terms: list[Term]
    error: list[Term]
    factors: set[str]

    @property
    def names(self) -> list[str]:
        """Names of all columns on the right, each once."""
        return list(dict.fromkeys(name for term in self.terms + self.error for name in term))


def parse(formula: str) -> Formula:
    """Read a formula. The intercept is always in the model.

    ``A*B`` is ``A + B + A:B``, ``A/B`` is ``A + A:B`` and ``(A+B+C)^2`` stops at two-factor
    interactions. ``Error(a/b)`` names the error strata as in R's aov; beside one there may be no
    terms. ``C(x)`` is x as a factor.

    Raises
    ------
    UserError : text that is no such formula, or a model without intercept or terms.
    """
    parser = _Parser(formula)
    response, terms, error = parser.read()
    error = _sorted(error, parser.error_names)
    factors = parser.factors | {name for term in error for name in term}
    return Formula(response, _sorted(terms, _names(parser.tokens)), error, factors)


def term_of(text: str) -> Term:
    """A block's term: ``task``, or ``task:seed`` for each combination of two columns."""
    return tuple(part.strip() for part in text.split(":"))


def _sorted(terms: list[frozenset[str]], names: list[str]) -> list[Term]:
    """Terms by length, and each one's names by first appearance."""
    return sorted((tuple(sorted(term, key=names.index)) for term in terms), key=len)


def _tokens(formula: str) -> list[tuple[str, str]]:
    found, at = [], 0
    text = formula.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            rest = _short(text[at:].strip())
            raise UserError(f"formula {_short(formula)}: cannot read {rest}; {_ALLOWED}")
        name, number, operator = match.groups()
        kind = "name" if name else "number" if number else operator.replace("**", "^")
        found.append((kind, (name or number or operator).strip("`")))
        at = match.end()
    return found


def _names(tokens: list[tuple[str, str]]) -> list[str]:
    return [text for kind, text in tokens if kind == "name"]


class _Parser:
    """Recursive descent over R's precedence: ^ then : then * and / then + and -."""

    def __init__(self, formula: str):
        self.formula = formula
        self.tokens = _tokens(formula)
        self.at = 0
        self.depth = 0
        self.error: list[frozenset[str]] = []
        self.error_names: list[str] = []
        self.factors: set[str] = set()

    def read(self) -> tuple[str, list[frozenset[str]], list[frozenset[str]]]:
        response = self._take("name")
        self._take("~")
        terms = self._sum()
        if self.at < len(self.tokens):
            self._fail(f"did not expect {self.tokens[self.at][1]!r}")
        terms = [term for term in terms if term]
        if not terms and not self.error:
            self._fail("has no terms")
        return response, terms, self.error

    def _fail(self, reason: str):
        raise UserError(f"formula {_short(self.formula)}: {reason}; {_ALLOWED}")

    def _peek(self) -> str | None:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else None

    def _take(self, kind: str) -> str:
        if self._peek() != kind:
            found = self.tokens[self.at][1] if self.at < len(self.tokens) else "the end"
            wanted = {"name": "a column name", "number": "a number"}.get(kind, repr(kind))
            self._fail(f"expected {wanted}, found {found!r}")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def _sum(self) -> list[frozenset[str]]:
        self.depth += 1
        if self.depth > MOST_NESTED:
            self._fail(f"nests more than {MOST_NESTED} parentheses")
        terms = self._added()
        self.depth -= 1
        return terms

    def _added(self) -> list[frozenset[str]]:
        terms = self._cross()
        while self._peek() in ("+", "-"):
            minus = self._take(self._peek()) == "-"
            more = self._cross()
            if minus and frozenset() in more:
                self._fail("removes the intercept, which every model here has")
            terms = [t for t in terms if t not in more] if minus else _union(terms, more)
        return terms

    def _cross(self) -> list[frozenset[str]]:
        terms = self._interaction()
        while self._peek() in ("*", "/"):
            nested = self._take(self._peek()) == "/"
            more = self._interaction()
            if nested:
                terms = _union(terms, _products([frozenset().union(*terms)], more))
            else:
                terms = _union(terms, more, _products(terms, more))
        return terms

    def _interaction(self) -> list[frozenset[str]]:
        terms = self._power()
        while self._peek() == ":":
            self._take(":")
            terms = _products(terms, self._power())
        return terms

    def _power(self) -> list[frozenset[str]]:
        base = self._atom()
        if self._peek() != "^":
            return base
        self._take("^")
        order = int(self._take("number")[:9])
        if order < 1:
            self._fail("has a power below 1")
        terms = base
        for _ in range(min(order, len(base)) - 1):
            terms = _union(terms, _products(terms, base))
        return terms

    def _atom(self) -> list[frozenset[str]]:
        if self._peek() == "(":
            self._take("(")
            terms = self._sum()
            self._take(")")
            return terms
        if self._peek() == "number":
            if self._take("number") != "1":
                self._fail("has a number other than 1 (the intercept, always in the model)")
            return [frozenset()]
        name = self._take("name")
        if self._peek() != "(":
            return [frozenset([name])]
        if name == "Error":
            return self._error()
        if name != "C":
            self._fail(
                f"calls {name}(); only C() and Error() are known: transform the column beforehand"
            )
        self._take("(")
        name = self._take("name")
        self._take(")")
        self.factors.add(name)
        return [frozenset([name])]

    def _error(self) -> list[frozenset[str]]:
        start = self.at
        alone = self.tokens[start - 2][0] in ("~", "+") and not self.error
        self._take("(")
        self.error = [term for term in self._sum() if term]
        self._take(")")
        self.error_names = _names(self.tokens[start : self.at])
        if not alone or not self.error or self._peek() not in (None, "+", "-"):
            self._fail("needs Error(terms) once, added to the other terms")
        return [frozenset()]


def _union(*lists: list[frozenset[str]]) -> list[frozenset[str]]:
    terms = list(dict.fromkeys(term for terms in lists for term in terms))
    return _few(terms, len(terms))


def _products(left: list[frozenset[str]], right: list[frozenset[str]]) -> list[frozenset[str]]:
    _few(left, len(left) * len(right) // MOST_TERMS)
    return _union([a | b for a, b in product(left, right)])


def _few(terms: list[frozenset[str]], count: int) -> list[frozenset[str]]:
    """The terms. Raises UserError where they are too many: ten factors crossed are 1,023."""
    if count > MOST_TERMS:
        raise UserError(f"formula: more than {MOST_TERMS} terms; allowed: at most that")
    return terms
