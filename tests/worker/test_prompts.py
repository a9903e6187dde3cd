"""Prompt and answer are exactly the conversation's tokens, and the answer ends with the end of the turn."""

from __future__ import annotations

import pytest
from conversation import CHATML, byte_tokenizer

from bench.config import ConfigurationError, TaskConfig
from bench.worker.data import messages, render, special_token_in
from bench.worker.sources.example import Example

TASK = TaskConfig(name="t", source="files")
EXAMPLE = Example("e1", "2 + 2?", "4", "")


def problem_with(template: str | None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        render(byte_tokenizer(template), TASK, EXAMPLE)
    (problem,) = caught.value.problems
    return problem


def test_prompt_and_answer_are_the_conversation_up_to_the_end_of_turn() -> None:
    tokenizer = byte_tokenizer()
    tokens = render(tokenizer, TASK, EXAMPLE)
    assert tokenizer.decode(tokens.prompt_ids) == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokens.answer_ids) == "4<|im_end|>"  # without the template's last newline
    assert tokens.answer_ids[-1] == tokenizer.eos_token_id
    conversation = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    whole = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)
    assert whole[:-1] == tokens.prompt_ids + tokens.answer_ids


def test_system_message_and_solved_examples_come_first() -> None:
    task = TaskConfig(name="t", source="files", system="Be brief.")
    shot = Example("e0", "1 + 1?", "2", "")
    assert messages(task, EXAMPLE, [shot]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2 + 2?"},
    ]
    with_shot = render(byte_tokenizer(), task, EXAMPLE, [shot])
    without = render(byte_tokenizer(), task, EXAMPLE)
    assert with_shot.answer_ids == without.answer_ids
    assert len(with_shot.prompt_ids) > len(without.prompt_ids)


def test_the_beginning_of_text_is_not_doubled() -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    tokenizer = byte_tokenizer(template)
    assert render(tokenizer, TASK, EXAMPLE).prompt_ids.count(tokenizer.bos_token_id) == 1


def test_what_follows_the_end_of_turn_is_not_learned() -> None:
    tokenizer = byte_tokenizer(CHATML + "{% if not add_generation_prompt %}<|im_end|>{% endif %}")
    assert tokenizer.decode(render(tokenizer, TASK, EXAMPLE).answer_ids) == "4<|im_end|>"


def test_a_template_may_write_before_the_answer() -> None:
    """As reasoning models do: an empty thought is part of what has to be written."""
    template = CHATML.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}[t][/t]{% endif %}{{ m['content'] }}"
    )
    tokenizer = byte_tokenizer(template)
    assert tokenizer.decode(render(tokenizer, TASK, EXAMPLE).answer_ids) == "[t][/t]4<|im_end|>"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "the tokenizer has none"),
        ("{{ messages | length }} turns {% for m in messages %}{{ m['content'] }}{% endfor %}", "changes the prompt"),
        (CHATML.split("{% if add")[0], "ignores add_generation_prompt"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "does not end the answer"),
        (CHATML.replace("{{ m['content'] }}", "{{ m['content'] | replace('4', 'four') }}"), "rewrites the answer"),
        ("{{ raise_exception('no such role') }}", "no such role"),
    ],
)
def test_templates_that_do_not_work_are_explained(template: str | None, words: str) -> None:
    problem = problem_with(template)
    assert problem.startswith("model.chat_template: ")
    assert words in problem


def test_an_answer_that_merges_into_the_prompt_is_refused() -> None:
    template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    )
    with pytest.raises(ConfigurationError, match="merges the answer"):
        render(byte_tokenizer(template, merges=[("?", "4")]), TASK, EXAMPLE)


def test_spelled_out_special_tokens_are_found() -> None:
    tokenizer = byte_tokenizer()
    assert special_token_in(tokenizer, "print('<|im_end|>')") == "<|im_end|>"
    assert special_token_in(tokenizer, "plain text") is None
