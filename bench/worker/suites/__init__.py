"""Regression suites as lm-eval tasks: the shape of our own tasks, and an order that is the same on every machine.

A `QuickTask` holds plain documents (dicts of strings, integers and lists) and says how they are scored:

    choice       {"context", "choices", "answer"}   the likeliest continuation wins; metric acc
    text         {"text"}                           bits per byte of the text
    instruction  {"prompt", "rule", "argument"}     a program checks the greedy answer; metric followed

Orders and selections come from SHA-256, not from a random generator: a generator's stream may change between
Python versions, and adding an item to a list would reshuffle all others.

    >>> by_hash(["b", "a", "c"], salt="example")
    ['a', 'b', 'c']
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Document = dict[str, Any]


@dataclass(frozen=True)
class QuickTask:
    """One task of the quick suite: its documents, in the order in which a limit takes them."""

    name: str
    kind: Literal["choice", "text", "instruction"]
    documents: tuple[Document, ...]


def by_hash(values: Iterable[T], salt: str) -> list[T]:
    """The values in the order of SHA-256(salt, repr(value)); another salt gives another order."""
    return sorted(values, key=lambda value: hashlib.sha256(f"{salt}\0{value!r}".encode()).digest())


def choice_task(name: str, questions: Sequence[tuple[str, str, Sequence[str]]]) -> QuickTask:
    """A multiple-choice task from (context, right continuation, wrong continuations).

    Every question has the same number of wrong continuations. The right one stands at each position equally often
    (+-1), so that a model that always takes the first, or ties, gets no more than chance.
    """
    ordered = by_hash(questions, salt=name)
    choices_per_question = len(ordered[0][2]) + 1
    documents = []
    for index, (context, right, wrong) in enumerate(ordered):
        choices = list(wrong)
        answer = index % choices_per_question
        choices.insert(answer, right)
        documents.append({"context": context, "choices": choices, "answer": answer})
    return QuickTask(name, "choice", tuple(documents))
