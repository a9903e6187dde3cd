"""Finds the mistakes of a suite before anything runs or is downloaded. No torch.

>>> check_suite(SuiteConfig(name="mine", source="lm_eval", tasks=["helaswag"]))
["suite.tasks: no task 'helaswag' (did you mean 'hellaswag'?); ..."]
"""

from __future__ import annotations

import difflib
import importlib.util
from functools import cache
from pathlib import Path

from bench.config import SuiteConfig, suggest
from bench.worker.suites import local
from bench.worker.suites.quick import quick_tasks

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
    found = local.problems(folder)
    return found + (_unknown(suite.tasks, local.names(folder)) if not found else [])


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
