"""The embedded task: what counts as an answer, and that no module or near-copy is in two splits."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from collections import Counter

import pytest

from bench.config import TaskConfig
from bench.worker.sources import Loaded, docstrings
from bench.worker.sources.docstrings import first_sentence, near_keys, outline

TASK = TaskConfig(name="docstrings", source="docstrings", prompt="Describe:\n{code}", target="{docstring}")


def rows_of(source: str) -> tuple[list[dict[str, str]], Counter[str]]:
    text = textwrap.dedent(source)
    dropped: Counter[str] = Counter()
    rows = list(docstrings.rows_of_module("m", ast.parse(text), text.splitlines(), dropped))
    return [row.columns for row in rows], dropped


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the sum of all parts.\n\nMore.", "Return the sum of all parts."),
        ("Return the sum\nof all parts", "Return the sum of all parts."),
        ("Return :class:`~a.b.Foo` of ``x``, e.g. 3.  More text.", "Return Foo of x, e.g. 3."),
        ("Move *x* to the **left** side", "Move x to the left side."),
    ],
)
def test_a_sentence_is_cleaned(docstring: str, expected: str) -> None:
    assert first_sentence(docstring) == expected


@pytest.mark.parametrize(
    "docstring",
    [
        "Too short.",
        "return lower case is a fragment.",
        "Deprecated since 1.2, use the other one.",
        ">>> 1 + 1 gives the answer",
        "Return the following::",
        "See the base class for details.",
        "Return caf\u00e9 and other drinks.",
        "foo(x, y) -> z computes the thing.",
        "Return a very long answer " + "and more " * 20 + ".",
        "Args: x the first argument of it.",
    ],
)
def test_noise_is_no_sentence(docstring: str) -> None:
    assert first_sentence(docstring) is None


def test_sentences_one_word_apart_share_a_key() -> None:
    chebyshev = near_keys("Multiply one Chebyshev series by another.")
    assert chebyshev & near_keys("Multiplies one Hermite series by another.") == set()  # two words differ
    assert chebyshev & near_keys("Multiply one Hermite series by another.")
    assert not near_keys("Return the graph.") & near_keys("Return the tree.")


def test_the_code_comes_without_its_docstring() -> None:
    rows, dropped = rows_of(
        '''
        class Box:
            @property
            def area(self) -> float:
                """Return the area of the box.

                More words.
                """

                width = self.right - self.left  # may be zero
                return width * (self.top - self.bottom)
        '''
    )
    assert dropped == {}
    assert rows == [
        {
            "name": "Box.area",
            "module": "m",
            "docstring": "Return the area of the box.",
            "code": "@property\ndef area(self) -> float:\n    width = self.right - self.left  # may be zero\n"
            "    return width * (self.top - self.bottom)",
            "outline": "<area ! self> {Assign Return}",
        }
    ]


def test_functions_without_a_body_or_of_other_sizes_are_counted() -> None:
    rows, dropped = rows_of(
        '''
        def nothing():
            """Return nothing at all."""

        def abstract():
            """Return what a subclass wants."""
            raise NotImplementedError

        def tiny():
            """Return the number one."""
            return 1

        def undocumented():
            return 2
        '''
    )
    assert rows == []
    assert dropped == {"code: nothing but the docstring": 2, "code: not 80 to 450 characters": 1}


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docstrings, "DOCSTRING_PACKAGES", {"networkx": "networkx"})  # the whole takes ten seconds
        return docstrings.load(TASK)


def test_splits_share_neither_module_nor_answer_nor_code(loaded: Loaded) -> None:
    sizes = {name: len(examples) for name, examples in loaded.splits.items()}
    assert sizes["train"] > 600
    assert sizes["validation"] > 60
    assert sizes["test"] > 150
    everything = [e for examples in loaded.splits.values() for e in examples]
    for part in ("example_id", "target", "prompt"):
        values = [getattr(e, part).lower() for e in everything]
        assert len(set(values)) == len(values), part
    modules = [{e.group for e in examples} for examples in loaded.splits.values()]
    assert sum(map(len, modules)) == len(set.union(*modules))


def test_what_was_left_out_is_counted(loaded: Loaded) -> None:
    assert loaded.dropped["duplicate: same docstring"] > 0
    assert all(count > 0 for count in loaded.dropped.values())
    assert "networkx" in loaded.source


def test_another_process_makes_the_same_examples(loaded: Loaded) -> None:
    script = (
        "import json; from bench.worker.sources import docstrings as d; from bench.config import TaskConfig;"
        "d.DOCSTRING_PACKAGES = {'networkx': 'networkx'};"
        "task = TaskConfig(name='d', source='docstrings', prompt='Describe:\\n{code}', target='{docstring}');"
        "print(json.dumps({k: [e.prompt for e in v] for k, v in d.load(task).splits.items()}));"
        "import sys; assert not {'torch', 'numpy', 'networkx'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert json.loads(done.stdout) == {k: [e.prompt for e in v] for k, v in loaded.splits.items()}


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
