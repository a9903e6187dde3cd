"""Texts whose bits per byte are measured: English prose and Python code that installed packages ship.

Prose: abstracts and descriptions from lm-eval's task pages and scikit-learn's data set descriptions. Code: top-level
blocks of Jinja, Rich, markdown-it and Hydra. None is a source of the embedded training task, and no file is imported.
Another version of a package may change some texts; their ids are hashes of their content, so that only equal texts
are ever paired.

    >>> tasks()[0].name, len(tasks()[0].documents)
    ("prose", 32)
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from bench.worker.suites.documents import QuickTask, by_hash

TEXTS_PER_TASK = 32
_SHORTEST_CHARACTERS, _LONGEST_CHARACTERS = 240, 600
_MARKUP = re.compile(r"[|`{}<>\[\]*#_\\@=]|http")
_CODE_PACKAGES = ("jinja2", "rich", "markdown_it", "hydra")


def _package_folder(package: str) -> Path:
    """Where a package is installed, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"The quick suite takes texts from {package!r}: install it (pip install {package}).")
    return Path(spec.origin).parent


def _paragraphs(text: str) -> Iterator[str]:
    """Plain English paragraphs: ASCII, no markup, from a capital letter to a full stop."""
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        fits = _SHORTEST_CHARACTERS <= len(paragraph) <= _LONGEST_CHARACTERS
        if (
            fits
            and paragraph.isascii()
            and paragraph[0].isupper()
            and paragraph.endswith(".")
            and not _MARKUP.search(paragraph)
        ):
            yield paragraph


def _blocks(source: str) -> Iterator[str]:
    """Top-level functions and classes, cut after a whole line."""
    for block in re.split(r"\n(?=def |class |@)", source)[1:]:
        cut = block[:_LONGEST_CHARACTERS]
        whole = block if len(block) <= _LONGEST_CHARACTERS else cut[: cut.rfind("\n")]
        if len(whole) >= _SHORTEST_CHARACTERS and whole.isascii():
            yield whole.rstrip() + "\n"


def _text_task(name: str, texts: set[str]) -> QuickTask:
    chosen = by_hash(texts, salt=name)[:TEXTS_PER_TASK]
    return QuickTask(name, "text", tuple({"text": text} for text in chosen))


def prose() -> QuickTask:
    """English prose, one paragraph an item."""
    pages = [
        *_package_folder("lm_eval").glob("tasks/**/README.md"),
        *_package_folder("sklearn").glob("datasets/descr/*.rst"),
    ]
    return _text_task("prose", {p for page in pages for p in _paragraphs(page.read_text(errors="replace"))})


def code() -> QuickTask:
    """Python code, one top-level block an item."""
    modules = [module for package in _CODE_PACKAGES for module in _package_folder(package).glob("*.py")]
    return _text_task("code", {b for module in modules for b in _blocks(module.read_text(errors="replace"))})


def tasks() -> list[QuickTask]:
    """Both text tasks."""
    return [prose(), code()]
