"""Conversations -> token ids by the model's chat template, and which of them carry loss.

An answer is what the template adds to the prompt, up to and including the token that ends the turn: a model trained on
it learns to stop. Prompt and answer together are exactly the tokens of the whole conversation, which is checked for
every example, so that training, held-out loss and generation see one prompt. The answers of a conversation are found
by the template's {% generation %} marks, else one by one in this way: the prompt of each turn must begin the text of
the whole. What the system, the user or a tool says never carries loss.

    >>> tokens = render_learned(tokenizer, task, example)
    >>> [token for token, learned in zip(tokens.answer_ids, tokens.answer_mask) if learned]
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from bench.config import TaskConfig
from bench.mistakes import ConfigurationError, refuse
from bench.worker.sources import Example, Message
from bench.worker.sources.layouts import as_text

DATE = "2024-07-26"  # that templates are told which ask for today's; Llama 3.1's own default
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OURS = ("weight", "given")  # keys of a message that are not the template's


class Tokens(NamedTuple):
    """Token ids; `prompt_ids + answer_ids` is the conversation up to its last answer that is learned or asked for."""

    prompt_ids: list[int]
    answer_ids: list[int]  # ends with the end-of-turn token
    answer_mask: Sequence[int] = ()  # 1 where a token of the answer carries loss; empty: all do


def conversation(task: TaskConfig, example: Example, shots: Sequence[Example] = ()) -> list[Message]:
    """System message if any, solved examples, the example's messages; the answer is the last."""
    turns = _turns(example)
    system = [turn for turn in turns[:1] if turn["role"] == "system"]
    own = turns[len(system) :]
    if task.system and not system:
        system = [{"role": "system", "content": task.system}]
    return [*system, *(turn for shot in shots for turn in _turns(shot) if turn["role"] != "system"), *own]


def _turns(example: Example) -> list[Message]:
    asked = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.target}]
    return list(example.turns) or asked


def each_answer(example: Example) -> list[Example]:
    """One example for each answer of a conversation, after all that came before it."""
    answers = [at for at, turn in enumerate(example.turns) if turn["role"] == "assistant" and "given" not in turn]
    if len(answers) < 2:
        return [example]
    return [
        replace(
            example,
            example_id=f"{example.example_id}, message {at + 1}",
            prompt=as_text(example.turns[:at], example.tools),
            target=as_text(example.turns[at : at + 1]),
            turns=example.turns[: at + 1],
        )
        for at in answers
    ]


# --- Tokens ---


def render(tokenizer: Any, task: TaskConfig, example: Example, shots: Sequence[Example] = ()) -> Tokens:
    """All before the last answer, and that answer: what a model is asked.

    A raw text has no question: its first half is the prompt.

    Args:
        tokenizer: a transformers tokenizer, with a chat template unless `task.format` is plain.
        shots: solved examples shown before the question.

    Raises:
        ConfigurationError: no chat template, or one that does not keep the prompt when the answer is added, or
            that does not end the answer with a special token.
    """
    if not example.prompt:
        ids = _raw(tokenizer, example.target)
        return Tokens(ids[: len(ids) // 2], ids[len(ids) // 2 :])
    if task.format == "plain":
        return _plain(tokenizer, example, shots)
    turns = conversation(task, example, shots)
    return _masked(*_by_prompts(tokenizer, example, turns, [len(turns) - 1]))


def render_learned(tokenizer: Any, task: TaskConfig, example: Example) -> Tokens | None:
    """A conversation with loss on the answers that `task.loss` asks for; None when it asks for none of them.

    Of a raw text every token carries loss, but the first, which nothing predicts.

    Raises:
        ConfigurationError: as `render`; a template by which the turns cannot be told apart.
    """
    if not example.prompt:
        ids = _raw(tokenizer, example.target)
        return Tokens(ids[:1], ids[1:])
    turns = conversation(task, example)
    answers = [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]
    learned = [at for at in answers if not turns[at].get("given")]
    if task.loss == "weights":
        learned = [at for at in learned if turns[at].get("weight", 1)]
    elif task.loss == "last":
        learned = learned[-1:]
    if not learned:
        return None
    marked = task.format == "chat" and _MARK.search(_template(tokenizer, example))
    if not marked and learned == answers[-1:]:
        return render(tokenizer, task, example)
    if not marked:
        return _masked(*_by_prompts(tokenizer, example, turns, learned))
    ids, places = _by_marks(tokenizer, task, example, turns, len(answers))
    return _masked(ids, [place for at, place in zip(answers, places, strict=True) if at in learned])


def _masked(ids: list[int], places: Sequence[range]) -> Tokens:
    """Tokens with loss in these places, which come in order."""
    start, end = places[0].start, places[-1].stop
    learned = {at for place in places for at in place}
    mask = [int(at in learned) for at in range(start, end)] if len(places) > 1 else ()
    return Tokens(ids[:start], ids[start:end], mask)


def _by_prompts(
    tokenizer: Any, example: Example, turns: list[Message], learned: Sequence[int]
) -> tuple[list[int], list[range]]:
    """(ids of the conversation, places of the learned messages), by the prompt before each."""
    whole = str(_apply(tokenizer, example, turns, tokenize=False))
    asked = [turn for turn in turns if turn["role"] in ("system", "user")]
    if left_out := [turn["role"] for turn in asked if turn["content"].strip() not in whole]:
        raise _broken(example, f"leaves out or rewrites what the {left_out[0]} says", whole[-60:])
    borders: list[int] = []  # characters at which the answers start and end
    for at in learned:
        prompt = str(_apply(tokenizer, example, turns[:at], tokenize=False, add_generation_prompt=True))
        if not whole.startswith(prompt) or len(prompt) < max(borders, default=0):
            if at == learned[-1]:
                raise _broken(example, "changes the prompt when the answer is added", prompt[-60:])
            raise _broken(example, "writes an answer otherwise once others follow it", prompt[-60:], _LAST)
        answer = _until_end_of_turn(tokenizer, example, whole[len(prompt) :], turns[at])
        borders += [len(prompt), len(prompt) + len(answer)]
    # The template writes the beginning-of-text token itself: the tokenizer must not add a second one.
    ids, lengths = _ids(tokenizer, whole[: borders[-1]]), []
    for border in borders[:-1]:
        before = _ids(tokenizer, whole[:border])
        if ids[: len(before)] != before:
            raise _broken(example, "merges the answer's first characters into the prompt", whole[:border])
        lengths.append(len(before))
    lengths.append(len(ids))
    return ids, [range(start, end) for start, end in zip(lengths[::2], lengths[1::2], strict=True)]


def _by_marks(
    tokenizer: Any, task: TaskConfig, example: Example, turns: list[Message], answers: int
) -> tuple[list[int], list[range]]:
    """(ids of the conversation, places of its answers), by the template's {% generation %} marks."""
    found = _apply(tokenizer, example, turns, return_assistant_tokens_mask=True)
    ids: list[int] = found["input_ids"]
    runs = [[at for at, _ in run] for mark, run in groupby(enumerate(found["assistant_masks"]), lambda m: m[1]) if mark]
    places = [range(run[0], run[-1] + 1) for run in runs]
    if len(places) != answers:
        raise _broken(example, f"marks {len(places)} stretches as generated, and the assistant wrote {answers}", "")
    special = set(tokenizer.convert_tokens_to_ids(list(special_tokens(tokenizer))))
    if any(special.isdisjoint(ids[at] for at in place) for place in places):
        raise _broken(example, "leaves the token that ends a turn out of its {% generation %} marks", "")
    asked = render(tokenizer, task, example).prompt_ids
    if ids[: len(asked)] != asked:
        raise _broken(example, "changes the prompt when the answer is added", tokenizer.decode(asked)[-60:])
    return ids, places


def _ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, as they stand there."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _raw(tokenizer: Any, text: str) -> list[int]:
    return [*_beginning(tokenizer), *_ids(tokenizer, text), tokenizer.eos_token_id]


def _plain(tokenizer: Any, example: Example, shots: Sequence[Example]) -> Tokens:
    """Prompt, answer and the end of text, without a template; solved examples with an empty line between."""
    prompt = "".join(f"{shot.prompt}{shot.target}\n\n" for shot in shots) + example.prompt
    before, whole = _ids(tokenizer, prompt), _ids(tokenizer, prompt + example.target)
    if whole[: len(before)] != before:  # white space that the answer's first word takes with it
        before = _ids(tokenizer, prompt.rstrip())
    if whole[: len(before)] != before:
        raise ConfigurationError(
            f"task.format=plain: the answer's first characters merge into the prompt's last ({prompt[-20:]!r}), "
            f"seen at example {example.example_id}; end the prompt by a line break, or start the answer by a space"
        )
    return Tokens([*_beginning(tokenizer), *before], [*whole[len(before) :], tokenizer.eos_token_id])


def _beginning(tokenizer: Any) -> list[int]:
    """The beginning-of-text token, where the tokenizer writes one before a text."""
    first = tokenizer("a")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


# --- Templates ---


def with_options(template: Any, options: Mapping[str, Any]) -> Any:
    """A chat template with its options and its date set at its head, so that whoever uses it gets the same.

    Args:
        template: Jinja source; some tokenizers have several by name.

    Raises:
        ConfigurationError: an option that the template does not read; a date that is none.
    """
    if not isinstance(template, str):
        return {name: with_options(text, options) for name, text in (template or {}).items()} or template
    words, problems, head = set(re.findall(r"[A-Za-z_]\w*", template)), [], ""
    asks_date = "strftime_now" in words
    for name, value in options.items():
        if name in words:
            head += f"{{% set {name} = {json.dumps(value)} %}}"
        elif not (name == "date" and asks_date):
            close = difflib.get_close_matches(name, words, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            problems.append(f"model.template.{name}: the chat template reads no such option{hint}; leave it out")
    try:
        day = date.fromisoformat(str(options.get("date", DATE)))
    except ValueError:
        problems.append(f"model.template.date: {options['date']!r} is no date; write it as {DATE}")
        day = date.fromisoformat(DATE)
    refuse(problems)
    if asks_date:
        codes = ["%-d", "%-m", *(f"%{letter}" for letter in "aAbBdmyYjHMS")]
        filled = "".join(f"|replace({code!r}, {day.strftime(code)!r})" for code in codes)
        head += f"{{% macro strftime_now(format) %}}{{{{ format{filled} }}}}{{% endmacro %}}"
    return f"{head}{{{{ '' }}}}{template}" if head else template


@lru_cache(maxsize=1)
def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts of the tokens that are markup: named ones (end of text, ...) and those added as special."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def _template(tokenizer: Any, example: Example) -> str:
    """The template's source for an example.

    Raises:
        ConfigurationError: there is none, or none that shows the example's tools.
    """
    if not tokenizer.chat_template:
        raise ConfigurationError(
            "model.chat_template: the tokenizer has none; set it to a Jinja chat template that ends each assistant "
            "turn with a special token (base models: ChatML is a common choice), or set task.format=plain"
        )
    template: str = tokenizer.get_chat_template(None, list(example.tools) or None)
    if example.tools and not re.search(r"\btools\b", template):
        raise _broken(example, "does not show the definitions of tools", "", _SHOW)
    return template


def _apply(tokenizer: Any, example: Example, turns: list[Message], **options: Any) -> Any:
    """`apply_chat_template`, whose mistakes are the configuration's."""
    _template(tokenizer, example)
    shown = [{name: value for name, value in turn.items() if name not in _OURS} for turn in turns]
    try:
        return tokenizer.apply_chat_template(shown, tools=list(example.tools) or None, **options)
    except Exception as error:  # templates raise their own, and any that Python has
        roles = ", ".join(dict.fromkeys(turn["role"] for turn in turns))
        raise ConfigurationError(
            f"model.chat_template: refuses a conversation of {roles}: {error}, seen at example "
            f"{example.example_id}; change task.system, the conversation or the template"
        ) from None


def _until_end_of_turn(tokenizer: Any, example: Example, addition: str, turn: Message) -> str:
    """The text that the model has to write: the template's addition up to the first special token past the answer.

    Templates go on behind it (a newline, an end of text): the model never has to produce that.
    """
    calls, content = turn.get("tool_calls", []), turn["content"].strip()
    if not calls and any(addition.startswith(token) for token in special_tokens(tokenizer)):
        raise _broken(example, "ignores add_generation_prompt: the answer's header is not in the prompt", "")
    behind = 0
    for part in [content, *(call["function"]["name"] for call in calls)]:
        found = addition.find(part, behind)
        if found < 0:
            raise _broken(example, "does not write calls of tools" if calls else "rewrites the answer", addition[:60])
        behind = found + len(part)
    ends_of_turn = _ends_of_turn(tokenizer, _template(tokenizer, example))
    if any(token in addition[:behind] for token in ends_of_turn):  # it was found in what others say later
        raise _broken(example, "rewrites the answer", addition[:60])
    # A call may hold special tokens itself, so that it ends where other answers end.
    tokens = ends_of_turn if calls else special_tokens(tokenizer)
    ends = [(at, len(token)) for token in tokens if (at := addition.find(token, behind)) >= 0]
    if not ends:
        raise _broken(example, "does not end the answer with a special token", addition[-60:])
    at, length = min(ends)
    return addition[: at + length]


@lru_cache(maxsize=1)
def _ends_of_turn(tokenizer: Any, template: str) -> tuple[str, ...]:
    """The token that ends a plain answer, and the end of text; the latter alone where a template refuses the probe."""
    probe, text = Example("probe", "question", "answer", ""), ""
    with suppress(ConfigurationError):
        text = str(_apply(tokenizer, probe, _turns(probe), tokenize=False))
    behind = max(0, text.rfind("answer"))
    ends = [(at, token) for token in special_tokens(tokenizer) if (at := text.find(token, behind)) >= 0]
    return tuple(dict.fromkeys([*(token for _, token in sorted(ends)[:1]), tokenizer.eos_token]))


_KEEPS = "Set model.chat_template to one that keeps the prompt and ends each assistant turn with a special token"
_LAST = (
    "Set task.loss=last to learn the last answer alone, or model.chat_template to one that keeps earlier turns as they "
    "are or marks answers by {% generation %}"
)
_SHOW = "Set model.chat_template to one that reads `tools`, or leave the column out"


def _broken(example: Example, what: str, shown: str, remedy: str = _KEEPS) -> ConfigurationError:
    near = f" (near {shown[-60:]!r})" if shown else ""
    return ConfigurationError(
        [
            f"model.chat_template: the template {what}{near}, seen at example {example.example_id}; without this "
            f"the model would be trained on another prompt than it is tested on. {remedy}"
        ]
    )
