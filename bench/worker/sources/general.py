"""General text to mix into training: English prose from the docstrings of installed packages.

Paragraphs of 240 to 600 characters without markup, behind the first one of a docstring, which the embedded task asks
for, and from modules of its training split alone. The texts that the quick suite and the divergence from the base are
measured on come from other files; one that were the same is left out.

    >>> load(2)[0].target
    'The algorithm is guaranteed to converge if the matrix is diagonally dominant. ...'
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench.worker.sources import Example, content_hash, docstrings
from bench.worker.suites.quick import paragraphs, text_tasks


def load(count: int) -> list[Example]:
    """So many different paragraphs, as raw texts, in a fixed order; fewer where there are no more."""
    found: dict[str, Example] = {}
    measured = {document["text"] for task in text_tasks() for document in task.documents}
    files = sorted(docstrings.source_files(Counter()), key=lambda file: content_hash(file[0]))
    for module, path in (file for file in files if docstrings.split_of(file[0]) == "train"):
        if len(found) >= count:
            break
        for text in (text for text in _prose(path) if text not in measured):
            found.setdefault(text, Example(f"{module}, general text", "", text, module))
    return list(found.values())[:count]


def _prose(path: Path) -> Iterator[str]:
    _, tree = docstrings.read_module(path) or ("", ast.Module([], []))
    documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    for text in filter(None, map(ast.get_docstring, documented)):
        yield from (found for found in paragraphs(text.partition("\n\n")[2]) if "---" not in found)  # a table
