"""One example -> token ids of its prompt and of its answer, by the model's own chat template.

The answer is everything that the template adds to the prompt, up to and including the token that ends the turn:
a model trained on it learns to stop. Prompt and answer together are exactly the tokens of the whole
conversation, which is checked for every example; so training, held-out loss and generation see one prompt.

    >>> render(tokenizer, task, Example("1", "2 + 2?", "4", group=""))
    TokenizedExample(prompt_ids=[1, 9690, ...], answer_ids=[36, 2])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from bench.config import ConfigurationError, TaskConfig
from bench.worker.sources.example import Example

Message = dict[str, str]


@dataclass(frozen=True)
class TokenizedExample:
    """Token ids; `prompt_ids + answer_ids` is the conversation."""

    prompt_ids: list[int]
    answer_ids: list[int]  # ends with the end-of-turn token


def messages(task: TaskConfig, example: Example, shots: Sequence[Example] = ()) -> list[Message]:
    """The conversation before the answer: system message if any, solved examples, question."""
    turns = [{"role": "system", "content": task.system}] if task.system else []
    for shot in shots:
        turns += [{"role": "user", "content": shot.prompt}, {"role": "assistant", "content": shot.target}]
    return [*turns, {"role": "user", "content": example.prompt}]


def render(tokenizer: Any, task: TaskConfig, example: Example, shots: Sequence[Example] = ()) -> TokenizedExample:
    """Tokenize one example.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        shots: solved examples shown before the question.

    Raises:
        ConfigurationError: no chat template, or one that does not keep the prompt when the answer is added, or
            that does not end the answer with a special token.
    """
    question = messages(task, example, shots)
    prompt = _apply(tokenizer, question, add_generation_prompt=True)
    full = _apply(tokenizer, [*question, {"role": "assistant", "content": example.target}], add_generation_prompt=False)
    if not full.startswith(prompt):
        raise _broken(tokenizer, example, "changes the prompt when the answer is added", prompt[-60:])
    answer = _until_end_of_turn(tokenizer, example, full[len(prompt) :])
    # The template writes the beginning-of-text token itself: the tokenizer must not add a second one.
    prompt_ids = _ids(tokenizer, prompt)
    full_ids = _ids(tokenizer, prompt + answer)
    if full_ids[: len(prompt_ids)] != prompt_ids:
        raise _broken(tokenizer, example, "merges the answer's first characters into the prompt", prompt)
    return TokenizedExample(prompt_ids, full_ids[len(prompt_ids) :])


@lru_cache(maxsize=1)
def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts of the tokens that are markup: named ones (end of text, ...) and those added as special."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def special_token_in(tokenizer: Any, text: str) -> str | None:
    """The first special token spelled out in a text, which would be read as the token itself."""
    return next((token for token in special_tokens(tokenizer) if token in text), None)


def _apply(tokenizer: Any, conversation: list[Message], add_generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise ConfigurationError(
            [
                "model.chat_template: the tokenizer has none; set it to a Jinja chat template that ends each "
                "assistant turn with a special token (base models: ChatML is a common choice)"
            ]
        )
    try:
        text: str = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:  # templates raise their own: "System role not supported"
        roles = ", ".join(dict.fromkeys(turn["role"] for turn in conversation))
        raise ConfigurationError(
            [f"model.chat_template: refuses a conversation of {roles}: {error}; change task.system or the template"]
        ) from None
    return text


def _until_end_of_turn(tokenizer: Any, example: Example, addition: str) -> str:
    """What the model has to write: the template's addition, cut after the first special token past the target.

    Templates go on behind it (a newline, an end of text): the model never has to produce that.
    """
    if any(addition.startswith(token) for token in special_tokens(tokenizer)):
        raise _broken(tokenizer, example, "ignores add_generation_prompt: the answer's header is not in the prompt", "")
    found = addition.find(example.target)
    if found < 0:
        raise _broken(tokenizer, example, "rewrites the answer", addition[:60])
    behind = found + len(example.target)
    ends = [(at, len(token)) for token in special_tokens(tokenizer) if (at := addition.find(token, behind)) >= 0]
    if not ends:
        raise _broken(tokenizer, example, "does not end the answer with a special token", addition[-60:])
    at, length = min(ends)
    return addition[: at + length]


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _broken(tokenizer: Any, example: Example, what: str, shown: str) -> ConfigurationError:
    near = f" (near {shown[-60:]!r})" if shown else ""
    return ConfigurationError(
        [
            f"model.chat_template: the template {what}{near}, seen at example {example.example_id}; without this "
            "the model would be trained on another prompt than it is tested on. Set model.chat_template to one "
            "that keeps the prompt and ends each assistant turn with a special token"
        ]
    )
