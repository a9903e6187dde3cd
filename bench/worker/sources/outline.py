"""A function in a notation that no model has seen: the far domain beside the near one of plain English.

    def clip(values, low=0, *, strict):          <clip ! values ! low~ ! :strict> {If Return*2}
        if strict: return ...
        return ...

Name and parameters stand between angle brackets (`~`: has a default, `:` keyword only, `*` and `**` as in Python), the
body's statements between braces, by kind in the order of their first appearance, with how often where more than once.
"""

from __future__ import annotations

import ast
from collections import Counter


def outline(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """One line; what it holds follows from the code alone, so that a reader of the code can write it."""
    return f"<{' ! '.join([function.name, *_parameters(function.args)])}> {{{' '.join(_statements(function))}}}"


def _parameters(arguments: ast.arguments) -> list[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    without = len(positional) - len(arguments.defaults)
    found = [a.arg + "~" * (place >= without) for place, a in enumerate(positional)]
    if arguments.vararg:
        found.append(f"*{arguments.vararg.arg}")
    for keyword, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(f":{keyword.arg}" + "~" * (default is not None))
    if arguments.kwarg:
        found.append(f"**{arguments.kwarg.arg}")
    return found


def _statements(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Kinds of statements, nested ones included, docstrings and other bare constants not."""
    kinds = Counter(
        type(node).__name__
        for statement in function.body
        for node in _walk(statement)
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    )
    return [kind if count == 1 else f"{kind}*{count}" for kind, count in kinds.items()]


def _walk(statement: ast.stmt) -> list[ast.stmt]:
    """A statement and those inside it, in the order of the source."""
    found = [statement]
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.stmt):
            found += _walk(child)
        elif isinstance(child, ast.ExceptHandler | ast.match_case):
            found += [inner for part in child.body for inner in _walk(part)]
    return found
