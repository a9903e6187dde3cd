"""The quick suite: general abilities that even a 135M model has, measured offline in under a minute.

Grammar, geography, arithmetic, instruction following and bits per byte, generated from word lists and installed
packages: the same items on every machine with the same package versions (`fingerprint`).

    >>> sum(len(task.documents) for task in quick_tasks())
    944
"""

from __future__ import annotations

from functools import cache

from bench.identity import digest
from bench.worker.suites import arithmetic, geography, grammar, instructions, text
from bench.worker.suites.documents import QuickTask


@cache
def quick_tasks() -> tuple[QuickTask, ...]:
    """Every task of the suite, in the order in which it is reported."""
    parts = (grammar, geography, arithmetic, text, instructions)
    return tuple(task for part in parts for task in part.tasks())


def fingerprint() -> str:
    """SHA-256 over all documents in order: equal fingerprints, equal items."""
    return digest({task.name: task.documents for task in quick_tasks()})
