"""All mutants of a file, each one change to its syntax tree, and a sample of them.

Left alone: annotations and aliases of types, docstrings, imports, `__all__` and `__slots__`, messages of assertions,
how a class is declared (bases, `frozen`, `slots`, `gc`), and what a module or class must have to be loaded at all: a
name that is gone would be found by anything.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.operators import OPERATORS

_NOT_CODE = {"annotation", "returns", "type_comment", "targets", "target", "ctx"}
_DECLARATION = {"bases", "keywords", "decorator_list"}
_CONTEXT = 36


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands in its parent: in a field, or in a list there."""

    parent: ast.AST
    field: str
    index: int | None

    def get(self) -> ast.AST:
        found = getattr(self.parent, self.field)
        return found if self.index is None else found[self.index]  # type: ignore[no-any-return]

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


@dataclass(frozen=True, slots=True)
class Change:
    place: Place
    replacement: ast.AST
    line: int
    function: str
    around: ast.AST
    """The function it is in, or the module."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change, the `number`-th of its file. `before` and `after` are its line of code, cut to what is near it."""

    file: str
    number: int
    line: int
    function: str
    before: str
    after: str

    @property
    def change(self) -> str:
        return f"{self.before} => {self.after}"


def changes(tree: ast.Module) -> list[Change]:
    return list(_within(tree, "", 1, tree))


def _within(node: ast.AST, function: str, line: int, around: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        function = f"{function}.{node.name}" if function else node.name
        around = node if isinstance(node, ast.FunctionDef) else around
    for place, child in _children(node):
        here = getattr(child, "lineno", line)
        if not _is_declaration(node, child) and not _is_implied(node, child):
            for replacement in OPERATORS.get(type(child), _nothing)(child):
                yield Change(place, replacement, here, function, around)
        yield from _within(child, function, here, around)


def _nothing(_node: ast.AST) -> Iterator[ast.AST]:
    return iter(())


def _is_declaration(parent: ast.AST, child: ast.AST) -> bool:
    """A statement whose absence any import of the module would notice."""
    return isinstance(parent, ast.Module | ast.ClassDef) and isinstance(child, ast.Assign | ast.AnnAssign | ast.Expr)


def _is_implied(parent: ast.AST, child: ast.AST) -> bool:
    """A `return None` at the end of a function: without it, the function does the same."""
    last = isinstance(parent, ast.FunctionDef) and parent.body[-1] is child
    return last and isinstance(child, ast.Return) and ast.unparse(child) in ("return", "return None")


def _children(node: ast.AST) -> Iterator[tuple[Place, ast.AST]]:
    for name, value in ast.iter_fields(node):
        if name in _NOT_CODE or (isinstance(node, ast.ClassDef) and name in _DECLARATION):
            continue
        if isinstance(node, ast.Assert) and name == "msg":
            continue
        for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if isinstance(child, ast.AST) and not _is_left_alone(child) and not _is_type(node, name, index):
                yield Place(node, name, index), child


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant()):
            return True
        case ast.Assign([ast.Name("__all__" | "__slots__")]) | ast.Call(ast.Name("TypeVar")):
            return True
        # A module's name for a type: `Test = Callable[...]`, `Node = Leaf | Operation`.
        case ast.Assign([ast.Name(name)], ast.Subscript() | ast.BinOp(op=ast.BitOr())):
            return name.lstrip("_")[:1].isupper() and not name.isupper()
    return False


def _is_type(node: ast.AST, field: str, index: int | None) -> bool:
    """The first argument of `cast`."""
    return isinstance(node, ast.Call) and field == "args" and index == 0 and ast.unparse(node.func) == "cast"


def mutated(source: str, number: int) -> ast.Module:
    """The tree with its `number`-th change, ready to be compiled."""
    tree = ast.parse(source)
    change = changes(tree)[number]
    change.place.put(change.replacement)
    return ast.fix_missing_locations(tree)


def described(file: str, source: str, numbers: Iterable[int]) -> list[Mutant]:
    """The mutants with these numbers."""
    found = changes(ast.parse(source))
    return [_described(file, number, found[number]) for number in numbers]


def _described(file: str, number: int, change: Change) -> Mutant:
    original, old = change.place.get(), ast.unparse(change.around).splitlines()
    change.place.put(change.replacement)
    new = ast.unparse(ast.fix_missing_locations(change.around)).splitlines()
    change.place.put(original)
    first = next(place for place in range(len(old)) if old[place : place + 1] != new[place : place + 1])
    last = next(place for place in range(1, len(old) + 1) if old[-place] != new[-place])
    before, after = (" ".join(line.strip() for line in lines[first : len(lines) - last + 1]) for lines in (old, new))
    return Mutant(file, number, change.line, change.function, *_cut(before, after))


def _cut(before: str, after: str) -> tuple[str, str]:
    """Both without what they have in common far from the change."""
    shorter = min(len(before), len(after))
    start = next((place for place in range(shorter) if before[place] != after[place]), shorter)
    rest = shorter - start
    end = next((place for place in range(rest) if before[-1 - place] != after[-1 - place]), rest)
    lead, tail = max(0, start - _CONTEXT), max(0, end - _CONTEXT)
    return tuple(  # type: ignore[return-value]
        ("…" if lead else "") + text[lead : len(text) - tail] + ("…" if tail else "") for text in (before, after)
    )


def sources(root: Path, packages: Iterable[str]) -> dict[str, str]:
    """The text of every file of the packages that holds code, by its path below the root."""
    found = {
        path.relative_to(root).as_posix(): path.read_text("utf-8")
        for package in packages
        for path in sorted((root / package).glob("*.py"))
    }
    return {file: text for file, text in found.items() if changes(ast.parse(text))}


def sample(texts: Mapping[str, str], number: int, seed: int) -> list[Mutant]:
    """So many mutants, or all: of each file in proportion to what it has, and the same ones for the same seed."""
    totals = {file: len(changes(ast.parse(text))) for file, text in texts.items()}
    return [
        mutant
        for file, count in _shares(totals, number).items()
        for mutant in described(
            file, texts[file], sorted(random.Random(f"{seed} {file}").sample(range(totals[file]), count))
        )
    ]


def _shares(totals: Mapping[str, int], number: int) -> dict[str, int]:
    """`number` shared out in proportion, by largest remainder."""
    whole = sum(totals.values())
    number = min(number, whole)
    shares = {file: total * number // whole for file, total in totals.items()}
    by_remainder = sorted(totals, key=lambda file: (-(totals[file] * number % whole), file))
    for file in by_remainder[: number - sum(shares.values())]:
        shares[file] += 1
    return shares
