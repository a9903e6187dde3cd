"""The invented notation of the far domain."""

from __future__ import annotations

import ast

import pytest

from bench.worker.sources.docstrings import outline

CASES = {
    "def f(): pass": "<f> {Pass}",
    "def f(a, /, b, c=1, *, d, e=2, **k):\n  return a": "<f ! a ! b ! c~ ! :d ! :e~ ! **k> {Return}",
    "def f(*a):\n  'Doc.'\n  if a:\n    return 1\n  return 2": "<f ! *a> {If Return*2}",
    "def f():\n  try:\n    x = 1\n  except E:\n    raise\n  else:\n    del x": "<f> {Try Assign Raise Delete}",
    "async def f():\n  for x in y:\n    g()": "<f> {For Expr}",
}


@pytest.mark.parametrize("code", CASES)
def test_outline(code: str) -> None:
    function = ast.parse(code).body[0]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    assert outline(function) == CASES[code]
