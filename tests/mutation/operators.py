"""What can be done to a piece of code: for a node of the syntax tree, the nodes that may stand in its place.

Each is a fault somebody could write. What only says how something is laid out or typed is left alone by `finding`.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

_Node = TypeVar("_Node", bound=ast.AST)

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Pow: ast.Mult, ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
_METHODS = {
    "startswith": "endswith", "endswith": "startswith", "removeprefix": "removesuffix", "removesuffix": "removeprefix",
    "find": "rfind", "partition": "rpartition", "upper": "lower", "lower": "upper", "isdigit": "isalnum",
    "isdecimal": "isdigit", "isascii": "isprintable", "append": "extend", "extend": "append", "keys": "values",
    "values": "keys", "setdefault": "get",
}  # fmt: skip
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "bisect_right": "bisect_left"}


def _changed(node: _Node, **fields: object) -> _Node:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _comparison(node: ast.Compare) -> Iterator[ast.AST]:
    for place, operator in enumerate(node.ops):
        for other in _COMPARISONS[type(operator)]:
            yield _changed(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]])


def _junction(node: ast.BoolOp) -> Iterator[ast.AST]:
    yield _changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _sign(node: ast.UnaryOp) -> Iterator[ast.AST]:
    """`not x` and `-x` become `x`."""
    yield node.operand


def _arithmetic(node: ast.BinOp | ast.AugAssign) -> Iterator[ast.AST]:
    if type(node.op) in _ARITHMETIC:
        yield _changed(node, op=_ARITHMETIC[type(node.op)]())


def _constant(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield _changed(node, value=not value)
    elif isinstance(value, int):
        yield _changed(node, value=value + 1)
        yield _changed(node, value=value - 1)
    elif isinstance(value, str):
        yield _changed(node, value=f"{value}!")
    elif isinstance(value, bytes):
        yield _changed(node, value=value + b"!")


def _conditions(node: ast.If | ast.IfExp | ast.While | ast.match_case) -> Iterator[ast.AST]:
    """Always, never, and the other way round; that of a plain comparison is a comparison's own change."""
    name = "guard" if isinstance(node, ast.match_case) else "test"
    test = getattr(node, name)
    if test is None:
        return
    if not isinstance(node, ast.While):
        yield _changed(node, **{name: ast.Constant(True)})
    yield _changed(node, **{name: ast.Constant(False)})
    if not (isinstance(test, ast.UnaryOp) or (isinstance(test, ast.Compare) and len(test.ops) == 1)):
        yield _changed(node, **{name: ast.UnaryOp(ast.Not(), test)})


def _comprehension(node: ast.comprehension) -> Iterator[ast.AST]:
    for place, test in enumerate(node.ifs):
        yield _changed(node, ifs=[*node.ifs[:place], *node.ifs[place + 1 :]])
        if not isinstance(test, ast.Compare | ast.UnaryOp):
            yield _changed(node, ifs=[*node.ifs[:place], ast.UnaryOp(ast.Not(), test), *node.ifs[place + 1 :]])


def _slice(node: ast.Slice) -> Iterator[ast.AST]:
    for name in ("lower", "upper", "step"):
        if getattr(node, name) is not None:
            yield _changed(node, **{name: None})


def _call(node: ast.Call) -> Iterator[ast.AST]:
    called = node.func
    if isinstance(called, ast.Attribute):
        if called.attr in _METHODS:
            yield _changed(node, func=_changed(called, attr=_METHODS[called.attr]))
        if called.attr == "get" and len(node.args) == 2:
            yield _changed(node, args=node.args[:1])
        if called.attr in ("strip", "rstrip", "lower", "upper") and not node.args:
            yield called.value
    elif isinstance(called, ast.Name) and called.id in _FUNCTIONS:
        yield _changed(node, func=ast.Name(_FUNCTIONS[called.id], ast.Load()))


def _returned(node: ast.Return) -> Iterator[ast.AST]:
    # A literal true or false is turned round instead: None in place of False is the same to an `if`.
    if node.value is not None and not _is_literal(node.value):
        yield _changed(node, value=ast.Constant(None))
    yield ast.Pass()


def _lambda(node: ast.Lambda) -> Iterator[ast.AST]:
    if not _is_literal(node.body):
        yield _changed(node, body=ast.Constant(None))


def _jump(node: ast.Break | ast.Continue) -> Iterator[ast.AST]:
    yield ast.Continue() if isinstance(node, ast.Break) else ast.Break()
    yield ast.Pass()


def _deleted(_node: ast.stmt) -> Iterator[ast.AST]:
    yield ast.Pass()


def _augmented(node: ast.AugAssign) -> Iterator[ast.AST]:
    yield from _arithmetic(node)
    yield from _deleted(node)


def _defaults(node: ast.arguments) -> Iterator[ast.AST]:
    """The first default is gone: the argument must be given."""
    if node.defaults:
        yield _changed(node, defaults=node.defaults[1:])
    for place, default in enumerate(node.kw_defaults):
        if default is not None:
            yield _changed(node, kw_defaults=[*node.kw_defaults[:place], None, *node.kw_defaults[place + 1 :]])


def _is_literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool))


OPERATORS: dict[type[ast.AST], Callable[..., Iterator[ast.AST]]] = {
    ast.Compare: _comparison,
    ast.BoolOp: _junction,
    ast.UnaryOp: _sign,
    ast.BinOp: _arithmetic,
    ast.AugAssign: _augmented,
    ast.Constant: _constant,
    ast.If: _conditions,
    ast.IfExp: _conditions,
    ast.While: _conditions,
    ast.match_case: _conditions,
    ast.comprehension: _comprehension,
    ast.Slice: _slice,
    ast.Call: _call,
    ast.Return: _returned,
    ast.Lambda: _lambda,
    ast.Break: _jump,
    ast.Continue: _jump,
    ast.Assign: _deleted,
    ast.AnnAssign: _deleted,
    ast.Expr: _deleted,
    ast.Raise: _deleted,
    ast.arguments: _defaults,
}
