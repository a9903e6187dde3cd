"""Records -> examples: by templates over any columns, or by the columns of a known layout.

    templates       task.prompt and task.target name the columns
    messages        {"messages": [{"role", "content", "tool_calls", "weight"}, ...], "tools": [...]}
    conversations   {"conversations": [{"from", "value"}, ...], "system", "tools"}   (ShareGPT)
    completion      {"prompt", "completion"}, both texts or both lists of messages
    instruction     {"instruction", "input", "output", "system", "history"}   (Alpaca)
    text            {"text"}: raw text, every token is learned

Outer white space of a text goes, as chat templates do it or not, by model; `task.format=plain` keeps it. What follows
the last assistant message is left out: nothing is learned from it.

    >>> fill([Row("a:1", {"messages": [...]})], task)
    ([Example(example_id='a:1', ...)], [])
"""

from __future__ import annotations

import json
import math
import reprlib
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from bench.config import TaskConfig, suggest
from bench.worker.sources import Example, Message, label_set


@dataclass(frozen=True)
class Row:
    """One record of a file or data set."""

    where: str  # for a person: file:line or split:row
    columns: dict[str, Any]


def fill(rows: Sequence[Row], task: TaskConfig) -> tuple[list[Example], list[str]]:
    """Examples of all rows that can be read, and one problem a row that cannot; `column_problems` found none."""
    if task.prompt is not None and task.target is not None:
        needed, read = frozenset[str](), _templates(task.prompt, task.target, task)
    else:
        needed, read, _ = LAYOUTS[str(layout_of(columns_there(rows)))]
    examples, problems = [], []
    for row in rows:
        try:
            if missing := sorted(needed - row.columns.keys()):
                raise ValueError(f"no column {missing[0]!r}; {_listing(list(row.columns))}")
            turns, tools = read(row.columns)
            columns = json.dumps(row.columns, ensure_ascii=False, default=str)
            examples.append(replace(_example(row.where, turns, tools, task), columns=columns))
        except ValueError as error:
            problems.append(f"{row.where}: {error}")
    return examples, problems


def columns_there(rows: Sequence[Row]) -> list[str]:
    """The names of all columns, in the order in which they come up."""
    return list(dict.fromkeys(name for row in rows for name in row.columns))


def with_labels(rows: Sequence[Row], task: TaskConfig) -> TaskConfig:
    """The task with the targets of its training rows as labels, where its prompt lists labels and none are given.

    Targets that are no labels, or cannot be read, leave it as it is: `column_problems` then names `{labels}`.
    """
    if task.labels is not None or task.target is None or "{labels}" not in (task.prompt or ""):
        return task
    targets = replace(task, prompt=task.target)
    if not rows or column_problems(columns_there(rows), targets, "", ""):
        return task
    return replace(task, labels=label_set(example.target for example in fill(rows, targets)[0]))


def _example(where: str, turns: list[Message], tools: list[Message], task: TaskConfig) -> Example:
    """Checked: every message holds a text or calls, and the conversation has a question and an answer.

    Raises:
        ValueError: what is wrong with the record.
    """
    plain = task.format == "plain"
    for number, turn in enumerate(turns, 1):
        name = f"message {number} ({turn['role']})" if len(turns) > 2 else _PART[turn["role"]]
        if not turn["content"].strip() and not turn.get("tool_calls") and turn["role"] not in ("system", "tool"):
            raise ValueError(f"{name} is empty")
        if turn["content"].encode(errors="replace").decode() != turn["content"]:  # JSON can spell such
            raise ValueError(f"{name} holds half a surrogate pair, which is no text; mend its \\u escapes")
    turns = [turn if plain else turn | {"content": turn["content"].strip()} for turn in turns]
    turns = [turn for turn in turns if turn["role"] != "system" or turn["content"]]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise ValueError("no message of the assistant, so there is nothing to learn")
    if "raw" in turns[0]:
        return Example(where, "", turns[0]["content"], group=turns[0]["content"])
    if turns[0]["role"] == "assistant":
        raise ValueError("the first message is the assistant's; start with the system's or the user's")
    *before, last = turns
    if [set(turn) for turn in turns] == [{"role", "content"}] * 2 and before[0]["role"] == "user" and not tools:
        return Example(where, before[0]["content"], last["content"], group=before[0]["content"])
    if plain:
        raise ValueError("a conversation needs a chat template; task.format=plain takes one prompt and one answer")
    prompt = as_text(before, tools)
    return Example(where, prompt, as_text([last]), prompt, tuple(turns), tuple(tools))


_PART = {"user": "the prompt", "assistant": "the target", "system": "the system message", "tool": "the tool's result"}


def as_text(turns: Sequence[Message], tools: Sequence[Message] = ()) -> str:
    """A conversation for a person, and for comparing two; a lone answer without its role."""
    texts = []
    for turn in turns:
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", [])]
        body = "\n".join(filter(None, [turn["content"], *calls]))
        texts.append(body if len(turns) == 1 and turn["role"] == "assistant" else f"{turn['role']}: {body}")
    named = [f"tools: {json.dumps(list(tools), ensure_ascii=False)}"] if tools else []
    return "\n\n".join([*named, *texts])


# --- Templates ---


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


def column_problems(columns: Sequence[str], task: TaskConfig, prompt_key: str, target_key: str) -> list[str]:
    """Problems of the templates, or, where there are none, of recognizing the columns; empty when all is well."""
    if task.prompt is not None and task.target is not None:
        return [
            *_template_problems(prompt_key, task.prompt, columns, task),
            *_template_problems(target_key, task.target, columns, task),
        ]
    if layout_of(columns) is not None:
        return []
    known = "; ".join(f"{' and '.join(sorted(layout.needed))}" for layout in LAYOUTS.values())
    return [f"{prompt_key}, {target_key}: give templates, because no known layout ({known}) fits; {_listing(columns)}"]


def _template_problems(key: str, template: str, columns: Sequence[str], task: TaskConfig) -> list[str]:
    """Problems of one template, given the columns of the data; empty when it can be filled.

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


Parsed = tuple[list[Message], list[Message]]  # messages, tools
Read = Callable[[dict[str, Any]], Parsed]


def _templates(prompt: str, target: str, task: TaskConfig) -> Read:
    """Reads a record by templates."""
    answer_columns = columns_of(target)
    needed = [c for c in dict.fromkeys([*columns_of(prompt), *answer_columns]) if c != "labels" or not task.labels]
    extra = {"labels": ", ".join(task.labels)} if task.labels else {}

    def read(columns: dict[str, Any]) -> Parsed:
        values = _named_label(columns, task)
        for name in needed:
            _check_cell(values, name, is_answer=name in answer_columns)
        return _asked(prompt.format_map({**values, **extra}), target.format_map({**values, **extra})), []

    return read


def _check_cell(values: dict[str, Any], name: str, is_answer: bool) -> None:
    if name not in values:
        raise ValueError(f"no column {name!r}; {_listing(list(values))}")
    value = values[name]
    # Numbers read well in a prompt; an answer's exact spelling is what is learned and scored.
    allowed: tuple[type, ...] = (str,) if is_answer else (str, int, float)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        what = "null" if value is None else "NaN, an empty cell"
        raise ValueError(f"column {name!r} is {what}; give it a text, or leave the record out")
    if not isinstance(value, allowed):
        raise ValueError(f"column {name!r} holds a {type(value).__name__} ({_short(value)}); write it as a text")


def _named_label(values: dict[str, Any], task: TaskConfig) -> dict[str, Any]:
    """The values with the integer class of `label_column` replaced by its name."""
    name, labels = task.label_column, task.labels
    if name is None or labels is None or name not in values:
        return values
    given = values[name]
    index = int(given) if isinstance(given, str) and given.isdecimal() else given
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(labels):
        raise ValueError(
            f"column {name!r} is {_short(given)}; allowed: 0 to {len(labels) - 1}, an index of task.labels"
        )
    return {**values, name: labels[index]}


def _listing(columns: Sequence[str]) -> str:
    return f"columns there: {', '.join(sorted(map(str, columns))) or 'none'}"


def _short(value: Any) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# --- Layouts ---

ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    **{"developer": "system", "function": "tool"},  # older and newer names of the same
    **{"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"},  # ShareGPT
}


def _asked(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _read_conversation(name: str) -> Read:
    """Reads the messages of a column, with the columns `system` and `tools` where they are."""

    def read(columns: dict[str, Any]) -> Parsed:
        turns = [_text_message("system", columns, "system")] if columns.get("system") else []
        turns += [_message(given, number) for number, given in enumerate(_objects(columns, name), 1)]
        return turns, [_tool(given) for given in _objects(columns, "tools")]

    return read


def _read_completion(columns: dict[str, Any]) -> Parsed:
    """The completion's answers are learned, and none of the prompt's."""
    if not isinstance(columns.get("prompt"), list) or not isinstance(columns.get("completion"), list):
        return [_text_message("user", columns, "prompt"), _text_message("assistant", columns, "completion")], []
    before, tools = _read_conversation("prompt")(columns)
    after = [_message(given, number) for number, given in enumerate(columns["completion"], len(before) + 1)]
    return [t | {"given": True} if t["role"] == "assistant" else t for t in before] + after, tools


def _read_instruction(columns: dict[str, Any]) -> Parsed:
    turns = [_text_message("system", columns, "system")] if columns.get("system") else []
    for past in columns.get("history") or []:
        if not isinstance(past, list) or [type(text) for text in past] != [str, str]:
            raise ValueError(f"column 'history' holds {_short(past)}; write [question, answer] pairs")
        turns += _asked(*past)
    asked = _text_message("user", columns, "instruction")
    if columns.get("input"):
        asked["content"] += "\n\n" + _text_message("user", columns, "input")["content"]
    return [*turns, asked, _text_message("assistant", columns, "output")], []


def _read_text(columns: dict[str, Any]) -> Parsed:
    return [_text_message("assistant", columns, "text") | {"raw": True}], []


class Layout(NamedTuple):
    """Columns that tell a layout, and how its records are read."""

    needed: frozenset[str]
    read: Read
    words: str  # for a person


LAYOUTS = {
    "messages": Layout(frozenset({"messages"}), _read_conversation("messages"), "messages"),
    "conversations": Layout(
        frozenset({"conversations"}), _read_conversation("conversations"), "ShareGPT conversations"
    ),
    "completion": Layout(frozenset({"prompt", "completion"}), _read_completion, "prompt and completion"),
    "instruction": Layout(frozenset({"instruction", "output"}), _read_instruction, "Alpaca instructions"),
    "text": Layout(frozenset({"text"}), _read_text, "raw texts"),
}
_ANSWERS = {"label", "labels", "label_text", "target", "answer", "summary", "response"}  # then a text is a question


def layout_of(columns: Sequence[str]) -> str | None:
    """The first of `LAYOUTS` whose columns are there; None: templates are needed."""
    there = set(columns)
    found = next((name for name, layout in LAYOUTS.items() if layout.needed <= there), None)
    return None if found == "text" and there & _ANSWERS else found


def described(rows: Sequence[Row], examples: Sequence[Example]) -> str:
    """What was recognized, for a person: "messages: 40 of 100 with several answers, 7 with tools"."""
    layout = layout_of(columns_there(rows))
    several = sum(sum(t["role"] == "assistant" for t in e.turns) > 1 for e in examples)
    counts = {"several answers": several, "tools": sum(bool(e.tools) for e in examples)}
    counts["weights"] = sum(any("weight" in turn for turn in e.turns) for e in examples)
    more = ", ".join(f"{count} with {what}" for what, count in counts.items() if count)
    return (LAYOUTS[layout].words if layout else "templates") + (f": of {len(examples)}, {more}" if more else "")


# --- Messages ---


def _objects(columns: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A column of objects, also as JSON text (CSV); [] where it is missing or null."""
    value = columns.get(name)
    if isinstance(value, str) and value.strip():
        value = _json(value, f"column {name!r}")
    value = value or []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"column {name!r} holds {_short(value)}; write a list of objects")
    return value


def _json(text: Any, where: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{where} holds {_short(text)}, which is not JSON") from None


def _text_message(role: str, columns: dict[str, Any], name: str) -> Message:
    _check_cell(columns, name, is_answer=True)
    return {"role": role, "content": columns[name]}


def _message(given: dict[str, Any], number: int) -> Message:
    """One message as chat templates take it, from OpenAI's or ShareGPT's; what is null or empty is left out.

    Raises:
        ValueError: an unknown role, a content that is no text, calls or a weight that cannot be read.
    """
    where = f"message {number}"
    speaker, value = given.get("role", given.get("from")), given.get("content", given.get("value"))
    role = ROLES.get(str(speaker))
    if role is None:
        raise ValueError(f"{where} is from {speaker!r}{suggest(str(speaker), list(ROLES))}")
    kept = {k: v for k, v in given.items() if k not in ("from", "value") and v is not None and v != []}
    if speaker == "function_call":
        kept, value = kept | {"tool_calls": _json(value, where)}, ""
    if "tool_calls" in kept:
        calls = kept["tool_calls"]
        kept["tool_calls"] = [_call(call, where) for call in (calls if isinstance(calls, list) else [calls])]
    if kept.get("weight", 1) not in (0, 1):
        raise ValueError(f"{where} has the weight {_short(kept['weight'])}; allowed: 0 or 1")
    return kept | {"role": role, "content": _content(value, where)}


def _content(value: Any, where: str) -> str:
    parts = value if isinstance(value, list) else [{"type": "text", "text": value or ""}]
    kinds = [part.get("type") if isinstance(part, dict) else type(part).__name__ for part in parts]
    if set(kinds) - {"text"}:
        raise ValueError(f"{where} holds parts of the kind {', '.join(map(str, kinds))}; only text is read")
    texts: list[Any] = [part.get("text") for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where} holds {_short(value)}; write its content as a text")
    return "".join(texts)


def _call(given: Any, where: str) -> dict[str, Any]:
    """{"type": "function", "function": {"name", "arguments"}}, the arguments as an object."""
    function = given.get("function", given) if isinstance(given, dict) else None
    called = function if isinstance(function, dict) else {}
    arguments = called.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments or "{}", f"{where}, a call's arguments:")
    if not isinstance(arguments, dict) or not isinstance(called.get("name"), str):
        raise ValueError(f"{where}: {_short(given)} is no call; write its function's name and arguments (an object)")
    kept = {"id": given["id"]} if given.get("id") else {}
    return kept | {"type": "function", "function": {"name": called["name"], "arguments": arguments}}


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    """A definition with its envelope, as templates expect it."""
    return given if "function" in given else {"type": "function", "function": given}
