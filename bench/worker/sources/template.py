"""Rows of named columns -> examples, by the task's `prompt` and `target` templates.

A template is Python's `str.format` restricted to column names: `"Q: {question}"`. Attribute and index access
are refused, because they would make a data file a program. A literal brace is written twice. `{labels}` is
always there when the task has labels: the allowed answers, joined by commas.

    >>> fill([Row("train.jsonl:1", {"q": "2 + 2?", "a": "4"})], "{q}", "{a}", task)
    ([Example(example_id='train.jsonl:1', prompt='2 + 2?', target='4', group='2 + 2?')], [])
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.config import TaskConfig, suggest
from bench.worker.sources.example import Example


@dataclass(frozen=True)
class Row:
    """One record of a file or data set."""

    where: str  # for a person: file:line or split:row
    columns: dict[str, Any]


def columns_of(template: str) -> list[str]:
    """The column names in a template, in order.

    Raises:
        ValueError: when the template is malformed or asks for more than plain columns.
    """
    names = []
    for _, name, specification, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name or name.isdecimal() or not set(name).isdisjoint(".[]"):
            raise ValueError(f"{{{name}}} is not a column's name")
        if specification or conversion:
            raise ValueError(f"{{{name}}} takes no format after its name")
        names.append(name)
    return names


def template_problems(key: str, template: str, columns: Sequence[str], task: TaskConfig) -> list[str]:
    """What is wrong with one template, given the columns there are; empty when it can be filled.

    Args:
        key: the setting's name for the message, for example "task.prompt".
    """
    allowed = [*columns, *(["labels"] if task.labels else [])]
    try:
        names = columns_of(template)
    except ValueError as error:
        return [f"{key}: {template!r} is not a template: {error}; write {{column}}, and a literal brace twice"]
    if not names:
        return [f"{key}: {template!r} names no column, so every example would be the same; {_listing(columns)}"]
    return [f"{key}: {{{n}}} is not a column{suggest(n, allowed)}" for n in dict.fromkeys(names) if n not in allowed]


def fill(rows: Sequence[Row], prompt: str, target: str, task: TaskConfig) -> tuple[list[Example], list[str]]:
    """Examples of all rows that can be filled, and one problem a row that cannot.

    Prompts and targets are stripped of surrounding white space: chat templates do so, or not, by model.
    """
    answer_columns = columns_of(target)
    needed = [c for c in dict.fromkeys([*columns_of(prompt), *answer_columns]) if c != "labels" or not task.labels]
    extra = {"labels": ", ".join(task.labels)} if task.labels else {}
    examples, problems = [], []
    for row in rows:
        values, problem = _named_label(row.columns, task)
        problem = problem or _cell_problem(values, needed, answer_columns)
        if problem is None:
            text = prompt.format_map({**values, **extra}).strip()
            answer = target.format_map({**values, **extra}).strip()
            if text and answer:
                examples.append(Example(row.where, text, answer, group=text))
                continue
            problem = "the target is empty" if text else "the prompt is empty"
        problems.append(f"{row.where}: {problem}")
    return examples, problems


def _cell_problem(values: dict[str, Any], needed: list[str], answer_columns: list[str]) -> str | None:
    for name in needed:
        if name not in values:
            return f"no column {name!r}; {_listing(list(values))}"
        value = values[name]
        # Numbers read well in a prompt; an answer's exact spelling is what is learned and scored.
        allowed: tuple[type, ...] = (str,) if name in answer_columns else (str, int, float)
        if value is None:
            return f"column {name!r} is null; give it a text, or leave the record out"
        if not isinstance(value, allowed):
            return f"column {name!r} holds a {type(value).__name__} ({_short(value)}); write it as a text"
        if isinstance(value, str) and not _is_unicode(value):
            return f"column {name!r} holds half a surrogate pair, which is no text; mend its \\u escapes"
    return None


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _named_label(values: dict[str, Any], task: TaskConfig) -> tuple[dict[str, Any], str | None]:
    """The values with the integer class of `label_column` replaced by its name."""
    name, labels = task.label_column, task.labels
    if name is None or labels is None or name not in values:
        return values, None
    given = values[name]
    index = int(given) if isinstance(given, str) and given.isdecimal() else given
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(labels):
        return values, f"column {name!r} is {_short(given)}; allowed: 0 to {len(labels) - 1}, an index of task.labels"
    return {**values, name: labels[index]}, None


def _listing(columns: Sequence[str]) -> str:
    return f"columns there: {', '.join(sorted(map(str, columns))) or 'none'}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
