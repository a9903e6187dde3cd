"""A user's own suite: a folder of lm-eval YAML tasks, or of plain minimal pairs.

With YAML files in the folder, these are the suite. Without, every `NAME.jsonl` is a task of minimal pairs, one
`{"sentence_good": ..., "sentence_bad": ...}` a line (BLiMP's shape; other keys are ignored).

    >>> minimal_pair_tasks(Path("blimp"))[0].name
    'adjunct_island'
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bench.config import SuiteConfig, suggest
from bench.worker.suites.documents import QuickTask
from bench.worker.suites.quick import quick_tasks

_GOOD, _BAD = "sentence_good", "sentence_bad"


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's YAML without importing the functions that it names."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def yaml_files(folder: Path) -> list[Path]:
    """The YAML files of a folder and those below it."""
    return sorted(folder.rglob("*.yaml"))


def pair_files(folder: Path) -> list[Path]:
    """The minimal-pair files of a folder: none where YAML files rule."""
    return [] if yaml_files(folder) else sorted(folder.glob("*.jsonl"))


def minimal_pair_tasks(folder: Path) -> list[QuickTask]:
    """One task a file; the good sentence stands first and second in turn, so that ties do not count as right.

    Raises:
        ValueError: a line is not a minimal pair, naming file and line.
    """
    tasks = []
    for file in pair_files(folder):
        documents = []
        for index, (good, bad) in enumerate(_pairs(file)):
            answer = index % 2
            documents.append({"context": "", "choices": [bad, good] if answer else [good, bad], "answer": answer})
        tasks.append(QuickTask(file.stem, "choice", tuple(documents), chance=0.5))
    return tasks


def _pairs(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            yield _pair(file, number, line)


def _pair(file: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        good, bad = row[_GOOD], row[_BAD]
    except (json.JSONDecodeError, KeyError, TypeError):
        good = bad = None
    if not (isinstance(good, str) and isinstance(bad, str) and good and bad):
        raise ValueError(f"{file.name} line {number}: not a JSON object with the strings {_GOOD} and {_BAD}")
    return good, bad


def names(folder: Path) -> list[str]:
    """The names that `suite.tasks` may choose from: tasks, groups and tags of the YAML files, or the pair files."""
    if pairs := pair_files(folder):
        return [file.stem for file in pairs]
    found: set[str] = set()
    for config in map(_read_yaml, yaml_files(folder)):
        tags = config.get("tag") or []
        own = [config.get("group") or config.get("task"), *([tags] if isinstance(tags, str) else tags)]
        found.update(name for name in own if isinstance(name, str))
    return sorted(found)


def problems(folder: Path) -> list[str]:
    """What is wrong with the files of a folder, without running anything; empty when all is well."""
    files, pairs = yaml_files(folder), pair_files(folder)
    if not files and not pairs:
        return [f"suite.path: {folder} holds neither .yaml tasks nor .jsonl minimal pairs"]
    found = []
    included = {str(name) for file in files for name in _includes(_read_yaml(file))}
    for file in files:
        config = _read_yaml(file)
        if "task" not in config and "group" not in config and file.name not in included:
            reason = config.get("__error__", "it has no `task:` (or `group:`) name; add one")
            found.append(f"suite.path: {file.name}: {reason}")
    for file in pairs:
        try:
            if not list(_pairs(file)):
                found.append(f"suite.path: {file.name}: empty")
        except ValueError as error:
            found.append(f"suite.path: {error}")
    return found


def _includes(config: dict[str, Any]) -> list[str]:
    includes = config.get("include") or []
    return [Path(name).name for name in ([includes] if isinstance(includes, str) else includes)]


def _read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file's mapping; what cannot be read is an empty task with the reason under `__error__`."""
    try:
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        return {"__error__": f"not valid YAML: {' '.join(str(error).split())}"}
    return config if isinstance(config, dict) else {"__error__": "not a mapping of settings"}


_IFEVAL_PACKAGES = ("langdetect", "immutabledict", "nltk")  # of lm-eval's extra; its import would fail after training


def check_suite(suite: SuiteConfig) -> list[str]:
    """The problems of a suite, one line each; empty when it can run. Reads names only.

    For `lm_eval` the whole registry is read once a process, which takes about seven seconds.
    """
    if suite.source == "none":
        return []
    if suite.source == "quick":
        return _unknown(suite.tasks, [task.name for task in quick_tasks()])
    if suite.source == "lm_eval":
        if not suite.tasks:
            return ["suite.tasks: empty; name at least one lm-eval task, or choose suite=none"]
        return _unknown(suite.tasks, registry_names()) + _missing_packages(suite.tasks)
    folder = Path(suite.path or "")
    if not suite.path or not folder.is_dir():
        return [f"suite.path: no folder {suite.path!r}; give a folder of lm-eval YAML tasks or minimal-pair .jsonl"]
    found = problems(folder)
    return found + (_unknown(suite.tasks, names(folder)) if not found else [])


def _missing_packages(tasks: list[str]) -> list[str]:
    missing = [p for p in _IFEVAL_PACKAGES if importlib.util.find_spec(p) is None]
    return [
        f"suite.tasks: {name} needs {', '.join(missing)}; install them (pip install 'lm-eval[ifeval]') or leave it out"
        for name in tasks
        if missing and "ifeval" in name
    ]


@cache
def registry_names() -> list[str]:
    """Every task, group and tag that lm-eval ships."""
    from lm_eval.tasks import TaskManager

    return list(TaskManager().all_tasks)


def _unknown(given: list[str], allowed: list[str]) -> list[str]:
    known = set(allowed)
    return [f"suite.tasks: no task {name!r}{_hint(name, allowed)}" for name in given if name not in known]


def _hint(name: str, allowed: list[str]) -> str:
    """The allowed names when they fit a line, the three closest when there are thousands."""
    if len(allowed) <= 40:
        return suggest(name, allowed)
    close = difflib.get_close_matches(name, allowed, n=3)
    hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    return f"{hint}; {len(allowed)} names are known: `lm-eval ls tasks` lists them"
