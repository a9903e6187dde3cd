"""A user's own suite, and the check of any suite before it runs.

A suite of one's own is a folder of lm-eval YAML tasks, or of plain minimal pairs.

With YAML files in the folder, these are the suite. Without, every `NAME.jsonl` is a task of minimal pairs, one
`{"sentence_good": ..., "sentence_bad": ...}` a line (BLiMP's shape; other keys are ignored).

    >>> minimal_pair_tasks(Path("blimp"))[0].name
    'adjunct_island'
"""

from __future__ import annotations

import difflib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bench.config import SuiteConfig, suggest
from bench.worker.sources import decoded, shortened
from bench.worker.sources.files import Source, read_records
from bench.worker.suites.quick import QuickTask, quick_tasks


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
    """One task a file; the good sentence stands first and second in turn, so that ties do not count as right."""
    tasks = []
    for file in pair_files(folder):
        turns = [(pair[::-1] if place % 2 else pair, place % 2) for place, pair in enumerate(_pairs(file)[0])]
        documents = [{"context": "", "choices": [*choices], "answer": answer} for choices, answer in turns]
        tasks.append(QuickTask(file.stem, "choice", tuple(documents)))
    return tasks


def _pairs(file: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """((good, bad) sentences of every line that holds two, what is wrong with the others)."""
    rows, problems = read_records(Source(file, file.name))
    pairs = []
    for row in rows:
        good, bad = (row.columns.get(name) for name in ("sentence_good", "sentence_bad"))
        if not (isinstance(good, str) and isinstance(bad, str) and good and bad):
            problems.append(f"{row.where}: not an object with the strings sentence_good and sentence_bad")
        elif good == bad:
            problems.append(f"{row.where}: both sentences are the same, so neither is the likelier")
        else:
            pairs.append((good, bad))
    return pairs, problems if pairs or problems else [f"{file.name}: empty"]


def problems(folder: Path) -> list[str]:
    """Problems of the files in a folder, found without running anything; empty when all is well."""
    files, pairs = yaml_files(folder), pair_files(folder)
    if not files and not pairs:
        return [f"suite.path: {folder} holds neither .yaml tasks nor .jsonl minimal pairs"]
    read = {file: _read_yaml(file) for file in files}
    includes = [config.get("include") or [] for config in read.values()]
    included = {Path(name).name for names in includes for name in ([names] if isinstance(names, str) else names)}
    found = [
        f"{file.name}: {config.get('__error__', 'it has no `task:` (or `group:`) name; add one')}"
        for file, config in read.items()
        if "task" not in config and "group" not in config and file.name not in included
    ]
    found += [problem for file in pairs for problem in shortened(_pairs(file)[1])]
    return [f"suite.path: {problem}" for problem in found]


def _read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file's mapping; what cannot be read is an empty task with the reason under `__error__`."""
    try:
        config = yaml.load(decoded(file.read_bytes(), file.name), Loader=_Loader)  # a SafeLoader
    except ValueError as error:
        return {"__error__": str(error).removeprefix(f"{file.name}:")}
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
        missing = [package for package in _IFEVAL_PACKAGES if importlib.util.find_spec(package) is None]
        remedy = f"needs {', '.join(missing)}; install them (pip install 'lm-eval[ifeval]') or leave it out"
        lacking = [f"suite.tasks: {name} {remedy}" for name in suite.tasks if missing and "ifeval" in name]
        return _unknown(suite.tasks, names_known()) + lacking
    folder = Path(suite.path or "")
    if not suite.path or not folder.is_dir():
        return [f"suite.path: no folder {suite.path!r}; give a folder of lm-eval YAML tasks or minimal-pair .jsonl"]
    names = [file.stem for file in pair_files(folder)]
    return problems(folder) or _unknown(suite.tasks, names or names_known(folder))


@cache
def names_known(folder: Path | None = None) -> list[str]:
    """Every task, group and tag that lm-eval ships, or that a folder holds."""
    from lm_eval.tasks import TaskManager

    return list(TaskManager(include_path=folder, include_defaults=folder is None).all_tasks)


def _unknown(given: list[str], allowed: list[str]) -> list[str]:
    """A problem for each name that is not allowed, with the nearest of thousands, or all that fit a line."""
    problems = []
    for name in sorted(set(given) - set(allowed), key=given.index):
        hint = suggest(name, allowed)
        if len(allowed) > 40:
            close = difflib.get_close_matches(name, allowed, n=3)
            hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
            hint += f"; {len(allowed)} names are known: `lm-eval ls tasks` lists them"
        problems.append(f"suite.tasks: no task {name!r}{hint}")
    return problems
