"""The embedded task: a Python function -> its one-line docstring, from packages that are installed anyway.

It needs no network and no download: the source files of the standard library and of eight pinned packages are
parsed with `ast`, never imported. Only whole sentences that say something are kept as answers, and no module
contributes to two splits; what was left out is counted by reason.

Columns for the templates: `code` (without its docstring), `docstring` (one sentence), `name`, `module`, and `outline`
(the function in an invented notation).

    >>> loaded = load(task)
    >>> loaded.splits["train"][0].target
    'Return the sum of the diagonal elements.'
"""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import importlib.util
import os
import platform
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.config import ConfigurationError, TaskConfig
from bench.worker.sources.copies import distinct, without_near_copies
from bench.worker.sources.example import Example, Loaded, content_hash
from bench.worker.sources.outline import outline
from bench.worker.sources.sentence import first_sentence
from bench.worker.sources.template import Row, fill, template_problems

COLUMNS = ("code", "docstring", "name", "module", "outline")
PACKAGES = {  # import name -> distribution
    "numpy": "numpy",
    "scipy": "scipy",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "transformers": "transformers",
    "sympy": "sympy",
    "networkx": "networkx",
}
# Tests say little in their docstrings; `models` of transformers are copies of one another; the others are left
# out of the standard library by some Linux distributions, and would make the data differ between machines.
SKIPPED_FOLDERS = {
    *("test", "tests", "testing", "models", "_vendor", "vendored", "site-packages", "dist-packages", "lib-dynload"),
    *("lib2to3", "idlelib", "turtledemo", "ensurepip", "distutils", "pydoc_data", "tkinter", "__pycache__"),
}
FILE_BYTES_MAXIMUM = 40_000  # larger ones are tables or generated, and parsing them takes half of the time
CODE_CHARACTERS = (80, 450)


def load(task: TaskConfig) -> Loaded:
    """All documented functions, divided 70/10/20 by module.

    Raises:
        ConfigurationError: when a template names a column that is not among `COLUMNS`.
    """
    problems = template_problems("task.prompt", task.prompt, COLUMNS, task)
    problems += template_problems("task.target", task.target, COLUMNS, task)
    if problems:
        raise ConfigurationError(problems)
    dropped: Counter[str] = Counter()
    with _collection_paused():
        rows = distinct(_all_rows(dropped), dropped)
    examples, empty = fill(rows, task.prompt, task.target, task)
    if empty:
        dropped["nothing left after the templates"] += len(empty)
    by_id = {row.where: row for row in rows}
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for example in examples:  # ordered by the hash of the name, so that other templates keep the same functions
        module = str(by_id[example.example_id].columns["module"])
        splits[split_of(module)].append(Example(example.example_id, example.prompt, example.target, module))
    for name in ("validation", "test"):
        splits[name] = without_near_copies(splits["train"], splits[name], by_id, dropped)
    return Loaded(splits, dict(sorted(dropped.items())), describe())


def versions() -> dict[str, str]:
    """Import name -> version of everything read; the data follow from these."""
    found = {"python": platform.python_version()}
    for package, distribution in PACKAGES.items():
        if importlib.util.find_spec(package) is not None:
            # A local suffix names the build (2.13.0+cpu); the Python sources are the same.
            found[package] = importlib.metadata.version(distribution).split("+")[0]
    return found


def describe() -> str:
    """Where the data came from, for a person."""
    listed = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"one-line docstrings of {listed}"


def split_of(module: str) -> str:
    """The split of every function of a module, by the module's hash."""
    bucket = int(content_hash(module)[:8], 16) % 100
    return "train" if bucket < 70 else "validation" if bucket < 80 else "test"


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Syntax trees have no cycles: looking for some while millions of nodes are built costs a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _all_rows(dropped: Counter[str]) -> Iterator[Row]:
    for module, path in _source_files(dropped):
        try:
            with tokenize.open(path) as file:  # honours the file's encoding cookie
                text = file.read()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's code
                tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError):
            dropped["file: not valid Python"] += 1
            continue
        yield from rows_of_module(module, tree, text.splitlines(), dropped)


def _source_files(dropped: Counter[str]) -> Iterator[tuple[str, Path]]:
    """(module name, file) of every source file read, sorted."""
    roots = [("", Path(sysconfig.get_path("stdlib")))]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
        if spec is not None and spec.submodule_search_locations:
            roots.append((package, Path(spec.submodule_search_locations[0])))
    for prefix, root in roots:
        for path in _python_files(root):
            parts = path.relative_to(root).with_suffix("").parts
            if path.stat().st_size > FILE_BYTES_MAXIMUM:
                dropped["file: larger than 40 kB"] += 1
                continue
            yield ".".join(([prefix] if prefix else []) + list(parts)).removesuffix(".__init__"), path


def _python_files(root: Path) -> Iterator[Path]:
    """Source files below a folder, sorted; skipped folders are not even entered."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith(("test_", "conftest", "_sysconfigdata")):
                yield Path(folder, name)


def rows_of_module(module: str, tree: ast.Module, lines: list[str], dropped: Counter[str]) -> Iterator[Row]:
    """The usable functions and methods of one parsed module; the others are counted in `dropped`."""
    for name, function in _functions(tree, ""):
        docstring = ast.get_docstring(function)
        if docstring is None:
            continue
        sentence = first_sentence(docstring)
        if sentence is None:
            dropped["docstring: no sentence of 15 to 120 characters"] += 1
            continue
        code = _code_without_docstring(function, lines)
        if code is None:
            dropped["code: nothing but the docstring"] += 1
        elif not CODE_CHARACTERS[0] <= len(code) <= CODE_CHARACTERS[1]:
            dropped["code: not 80 to 450 characters"] += 1
        elif not code.isascii() or "<|" in code:  # "<|": chat markup in the code would break the prompt
            dropped["code: not plain ASCII"] += 1
        else:
            columns = {"code": code, "docstring": sentence, "name": name, "module": module}
            yield Row(f"{module}:{name}", columns | {"outline": outline(function)})


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods with their qualified names; not those inside functions."""
    for child in getattr(node, "body", []):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")


def _code_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str | None:
    """The function's lines, dedented, its docstring removed; None when nothing else is in its body."""
    docstring, rest = function.body[0], [s for s in function.body[1:] if not _is_placeholder(s)]
    if not rest or rest[0].lineno <= (docstring.end_lineno or 0) or docstring.lineno == function.lineno:
        return None
    start = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    head, tail = lines[start - 1 : docstring.lineno - 1], lines[docstring.end_lineno : function.end_lineno]
    while tail and not tail[0].strip():
        tail.pop(0)
    indent = function.col_offset
    return "\n".join(line[indent:] if line[:indent].isspace() else line for line in head + tail).rstrip()


def _is_placeholder(statement: ast.stmt) -> bool:
    """`pass`, `...` and `raise NotImplementedError` tell nothing to summarize."""
    if isinstance(statement, ast.Raise):
        return "NotImplementedError" in ast.dump(statement)
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )
