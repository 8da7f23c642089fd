"""Label expressions: ``gpu``, ``gpu && !spot``, ``(a100 || h100) && !spot``. A plain label is the simplest of them."""

from __future__ import annotations

import re
from functools import lru_cache

#: Bytes of one expression: each is part of a job's class.
LONGEST = 500
DEEPEST = 20

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_TOKEN = re.compile(r"\s*(?:(&&|\|\||[!()])|([A-Za-z0-9][A-Za-z0-9._-]*))", re.ASCII)

#: A parsed expression: a label, ("!", one) or ("&&" | "||", one, other).
Tree = str | tuple["str | Tree", ...]


def normal(text: str) -> str:
    """``text`` with one spelling for what means the same tree. Raises ValueError with the position of what is wrong."""
    return _shown(_parsed(text), 0)


def matches(text: str, labels: frozenset[str]) -> bool:
    """Whether a channel with these labels meets the expression. Raises ValueError."""
    return _holds(_parsed(text), labels)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Tree:
    if len(text) > LONGEST:
        raise ValueError(f"is {len(text)} characters long; the limit is {LONGEST}")
    return _Parser(text).whole()


class _Parser:
    """Recursive descent; ``!`` binds closest, then ``&&``, then ``||``."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._depth = 0
        self._symbol, self._label = "", ""
        self._begin = 0  # of the token in hand
        self._next()

    def whole(self) -> Tree:
        tree = self._either()
        if self._symbol or self._label:
            raise self._wrong("expected && or ||")
        return tree

    def _either(self) -> Tree:
        tree = self._both()
        while self._symbol == "||":
            self._next()
            tree = ("||", tree, self._both())
        return tree

    def _both(self) -> Tree:
        tree = self._one()
        while self._symbol == "&&":
            self._next()
            tree = ("&&", tree, self._one())
        return tree

    def _one(self) -> Tree:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._wrong(f"nested deeper than {DEEPEST} levels")
        tree: Tree
        if self._symbol == "!":
            self._next()
            tree = ("!", self._one())
        elif self._symbol == "(":
            opened = self._begin
            self._next()
            tree = self._either()
            if self._symbol != ")":
                raise self._wrong(f"the parenthesis of position {opened + 1} is not closed")
            self._next()
        elif self._label:
            if LABEL.fullmatch(self._label) is None:
                raise self._wrong("a label has at most 64 characters")
            tree = self._label
            self._next()
        else:
            raise self._wrong("expected a label, ! or (")
        self._depth -= 1
        return tree

    def _next(self) -> None:
        rest = self._text[self._position :]
        self._begin = self._position + len(rest) - len(rest.lstrip())
        if not rest.strip():
            self._symbol, self._label = "", ""
            return
        token = _TOKEN.match(self._text, self._position)
        if token is None:
            hint = "; write && and ||" if rest.lstrip()[0] in "&|," else ""
            raise self._wrong(f"{rest.lstrip()[0]!r} is no part of a label{hint}")
        self._symbol, self._label = token[1] or "", token[2] or ""
        self._position = token.end()

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"{self._text[:100]!r}, position {self._begin + 1}: {what}")


def _holds(tree: Tree, labels: frozenset[str]) -> bool:
    if isinstance(tree, str):
        return tree in labels
    operator, *parts = tree
    if operator == "!":
        return not _holds(parts[0], labels)
    return (all if operator == "&&" else any)(_holds(part, labels) for part in parts)


def _shown(tree: Tree, binding: int) -> str:
    if isinstance(tree, str):
        return tree
    if tree[0] == "!":
        return "!" + _shown(tree[1], 3)
    own = 2 if tree[0] == "&&" else 1
    text = f" {tree[0]} ".join((_shown(tree[1], own), _shown(tree[2], own + 1)))
    return f"({text})" if own < binding else text
