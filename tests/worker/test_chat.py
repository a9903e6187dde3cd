"""Which tokens of a conversation carry loss: against masks written by hand, for five public styles of templates."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conversation import style

from bench.config import TaskConfig
from bench.mistakes import ConfigurationError
from bench.worker.chat import Tokens, each_answer, render, render_learned, with_options
from bench.worker.sources import Example
from bench.worker.sources.layouts import Row, fill

TASK = TaskConfig(name="t", source="files", prompt=None, target=None)
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!", "weight": 0},
    {"role": "user", "content": "Hello! Bye"},  # holds the answer before
    {"role": "assistant", "content": "See you."},
]
SYSTEM = {"role": "system", "content": "Be kind."}
CALLS = [
    {"role": "user", "content": "Who lives in Oslo?"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "count", "arguments": '{"city": "Oslo"}'}}]},
    {"role": "tool", "content": "717710"},
    {"role": "assistant", "content": "717710 people."},
]
TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {}}}]
CALLED = '{"name": "count", "arguments": {"city": "Oslo"}}'
BY_HAND = {  # what the template makes of a conversation; what carries loss between « and »
    ("chatml", "talk"): (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n«Hello!<|im_end|>»\n"
        "<|im_start|>user\nHello! Bye<|im_end|>\n<|im_start|>assistant\n«See you.<|im_end|>»"
    ),
    ("llama3", "system"): (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Hello!<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nHello! Bye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«See you.<|eot_id|>»"
    ),
    ("gemma", "talk"): (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n«Hello!<end_of_turn>»\n"
        "<start_of_turn>user\nHello! Bye<end_of_turn>\n<start_of_turn>model\n«See you.<end_of_turn>»"
    ),
    ("mistral", "talk"): "<s>[INST] Hi[/INST]« Hello!</s>»[INST] Hello! Bye[/INST]« See you.</s>»",
    ("mistral", "calls"): (
        '<s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "count", "parameters": {}}}]'
        '[/AVAILABLE_TOOLS][INST] Who lives in Oslo?[/INST]«[TOOL_CALLS] [{"name": "count", "arguments": '
        '{"city": "Oslo"}}]</s>»[TOOL_RESULTS] 717710[/TOOL_RESULTS]« 717710 people.</s>»'
    ),
    ("qwen3", "talk"): (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n«Hello!<|im_end|>»\n<|im_start|>user\nHello! Bye"
        "<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nSee you.<|im_end|>»"
    ),
    ("qwen3", "calls"): (
        '<|im_start|>system\n# Tools\n[{"type": "function", "function": {"name": "count", "parameters": {}}}]<|im_end|>'
        "\n<|im_start|>user\nWho lives in Oslo?<|im_end|>\n<|im_start|>assistant\n"
        f"«<tool_call>\n{CALLED}\n</tool_call><|im_end|>»\n"
        "<|im_start|>user\n<tool_response>\n717710\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n«<think>\n\n</think>\n\n717710 people.<|im_end|>»"
    ),
}
CONVERSATIONS = {"talk": (TALK, []), "system": ([SYSTEM, *TALK], []), "calls": (CALLS, TOOLS)}


def example(turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> Example:
    (found,), problems = fill([Row("f:1", {"messages": turns, "tools": tools})], TASK)
    assert problems == []
    return found


def tokenizer_of(name: str, **options: Any) -> Any:
    tokenizer = style(name)
    tokenizer.chat_template = with_options(tokenizer.chat_template, options)
    return tokenizer


def in_marks(tokenizer: Any, tokens: Tokens | None) -> str:
    """The text, with « and » around what carries loss, token by token."""
    assert tokens is not None
    mask = [0] * len(tokens.prompt_ids) + list(tokens.answer_mask or [1] * len(tokens.answer_ids))
    text, before = "", 0
    for token, learned in zip([*tokens.prompt_ids, *tokens.answer_ids], mask, strict=True):
        text += ("»" if before > learned else "«" if learned > before else "") + tokenizer.decode([token])
        before = learned
    return text + "»" * before


def problem_of(
    name: str, turns: list[dict[str, Any]], tools: Any = None, task: TaskConfig = TASK, **options: Any
) -> str:
    with pytest.raises(ConfigurationError) as caught:
        render_learned(tokenizer_of(name, **options), task, example(turns, tools))
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(("name", "conversation"), BY_HAND, ids="-".join)
def test_masks_are_those_written_by_hand(name: str, conversation: str) -> None:
    tokenizer, turns = tokenizer_of(name), example(*CONVERSATIONS[conversation])
    expected = BY_HAND[name, conversation]
    assert in_marks(tokenizer, render_learned(tokenizer, TASK, turns)) == expected
    # Of the last answer alone: the prompt that is generated from, in evaluation.
    head, mark, last = expected.rpartition("«")
    last_alone = re.sub("[«»]", "", head) + mark + last
    assert in_marks(tokenizer, render_learned(tokenizer, replace(TASK, loss="last"), turns)) == last_alone
    assert in_marks(tokenizer, render(tokenizer, TASK, turns)) == last_alone


@pytest.mark.parametrize("name", ["chatml", "mistral", "gemma", "qwen3"])
def test_messages_of_weight_0_carry_no_loss(name: str) -> None:
    tokenizer, turns = tokenizer_of(name), example(TALK)
    weighted = render_learned(tokenizer, replace(TASK, loss="weights"), turns)
    assert weighted == render(tokenizer, TASK, turns)  # the first answer weighs nothing
    nothing = example([*TALK[:2], *TALK[:2]])
    assert render_learned(tokenizer, replace(TASK, loss="weights"), nothing) is None


def test_marks_of_the_template_decide_where_it_has_them() -> None:
    source = style("chatml").chat_template
    marked = source.replace(
        "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}",
        "{{ '<|im_start|>' ~ m.role ~ '\\n' -}}{%- if m.role == 'assistant' -%}{%- generation -%}"
        "{{ m.content ~ '<|im_end|>' -}}{%- endgeneration -%}{%- else -%}{{ m.content ~ '<|im_end|>' }}{%- endif -%}"
        "{{ '\\n' }}",
    )
    tokenizer = style("chatml", marked)
    assert in_marks(tokenizer, render_learned(tokenizer, TASK, example(TALK))) == BY_HAND["chatml", "talk"]
    without_end = style("chatml", marked.replace("~ '<|im_end|>' -}}{%- endg", "-}}{%- endg").replace(
        "{{ '\\n' }}", "{{ ('<|im_end|>' if m.role == 'assistant' else '') ~ '\\n' }}"
    ))  # fmt: skip
    with pytest.raises(ConfigurationError, match="leaves the token that ends a turn out"):
        render_learned(without_end, TASK, example(TALK))


def test_a_template_that_cannot_be_split_is_refused_with_what_to_do() -> None:
    folded = problem_of("mistral", [SYSTEM, *TALK])  # the system's message moves to the last question
    assert folded.startswith("model.chat_template: the template writes an answer otherwise once others follow")
    assert "task.loss=last" in folded
    assert render_learned(tokenizer_of("mistral"), replace(TASK, loss="last"), example([SYSTEM, *TALK]))
    assert "task.loss=last" in problem_of("qwen3", TALK, enable_thinking=False)
    assert "refuses a conversation of system, user" in problem_of("gemma", [SYSTEM, *TALK])
    assert "does not show the definitions of tools" in problem_of("chatml", CALLS, TOOLS)
    assert "does not write calls of tools" in problem_of("chatml", CALLS)


def test_an_answer_that_the_template_rewrites_is_not_looked_for_in_what_others_say() -> None:
    source = style("chatml").chat_template
    tokenizer = style(
        "chatml", source.replace("m.content ~", "(m.content | upper if loop.index == 2 else m.content) ~")
    )
    with pytest.raises(ConfigurationError, match="rewrites the answer"):
        render_learned(tokenizer, TASK, example(TALK))  # the user says "Hello!" too


def test_every_answer_is_tested_after_its_true_history() -> None:
    tokenizer = tokenizer_of("qwen3", enable_thinking=False)
    first, second = each_answer(example([SYSTEM, *TALK]))
    assert (first.example_id, second.example_id) == ("f:1, message 3", "f:1, message 5")
    assert (first.target, second.target) == ("Hello!", "See you.")
    assert in_marks(tokenizer, render(tokenizer, TASK, first)).endswith(
        "user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n«Hello!<|im_end|>»"
    )
    assert "assistant\nHello!<|im_end|>" in in_marks(tokenizer, render(tokenizer, TASK, second))


def test_options_of_the_template_are_set_at_its_head() -> None:
    def date_in(**options: Any) -> str:
        return in_marks(*(lambda t: (t, render(t, TASK, example([SYSTEM, *TALK]))))(tokenizer_of("llama3", **options)))

    assert "Today Date: 26 Jul 2024" in date_in()
    assert "Today Date: 01 Feb 2026" in date_in(date="2026-02-01")
    assert "Today Date: today" in date_in(date_string="today")
    with pytest.raises(ConfigurationError) as caught:
        with_options(style("qwen3").chat_template, {"enable_thinkin": False, "date": "soon"})
    assert caught.value.problems == [
        "model.template.enable_thinkin: the chat template reads no such option (did you mean 'enable_thinking'?); "
        "leave it out",
        "model.template.date: the chat template reads no such option; leave it out",
        "model.template.date: 'soon' is no date; write it as 2024-07-26",
    ]
    assert with_options("{{ messages }}", {}) == "{{ messages }}"


def test_plain_is_prompt_answer_and_the_end_of_text() -> None:
    tokenizer, plain = style("chatml", "{{ none }}"), replace(TASK, format="plain")
    tokens = render(tokenizer, plain, Example("e", "2 + 2 =", " 4", ""), [Example("s", "1 + 1 =", " 2", "")])
    assert in_marks(tokenizer, tokens) == "1 + 1 = 2\n\n2 + 2 =« 4<|im_end|>»"
    with pytest.raises(ConfigurationError, match="merge into the prompt's last"):
        render(style("chatml").__class__(tokenizer_object=merging(), eos_token="<|im_end|>"), plain,
               Example("e", "2", "4", ""))  # fmt: skip


def merging() -> Any:
    from conversation import byte_tokenizer

    return byte_tokenizer(merges=[("2", "4")]).backend_tokenizer


def test_of_a_raw_text_every_token_is_learned() -> None:
    tokenizer, text = style("chatml"), Example("e", "", "Oslo is far.", "")
    assert in_marks(tokenizer, render_learned(tokenizer, TASK, text)) == "O«slo is far.<|im_end|>»"
    assert in_marks(tokenizer, render(tokenizer, TASK, text)) == "Oslo i«s far.<|im_end|>»"  # half of it is asked for


# --- TRL ---

TRL = importlib.util.find_spec("trl")
PAIRS = {"qwen2_5": "chatml", "llama3": "llama3", "gemma": "gemma", "gemma3": "gemma", "qwen3": "qwen3"}


@pytest.mark.skipif(TRL is None, reason="TRL is not installed: pip install -c constraints.txt -e '.[peers]'")
@pytest.mark.parametrize("name", PAIRS)
def test_masks_are_those_of_trl(name: str) -> None:
    """TRL's SFT takes its mask from its own copy of the template, with marks; ours comes from the original."""
    assert TRL is not None
    folder = Path(str(TRL.origin)).parent / "chat_templates"
    theirs = style(PAIRS[name], (folder / f"{name}_training.jinja").read_text())
    ours = theirs if name == "qwen3" else style(PAIRS[name], (folder / f"{name}.jinja").read_text())
    turns = [{k: v for k, v in turn.items() if k != "weight"} for turn in TALK]
    expected = theirs.apply_chat_template(turns, return_assistant_tokens_mask=True)
    tokens = render_learned(ours, TASK, example(TALK))
    assert tokens is not None
    ids = [*tokens.prompt_ids, *tokens.answer_ids]
    mask = [0] * len(tokens.prompt_ids) + list(tokens.answer_mask)
    assert ids == expected["input_ids"][: len(ids)]
    # TRL's templates mark the line break behind the end of a turn too, which no model has to write, and Qwen2.5's the
    # one before an answer, which the prompt ends with.
    ends = {theirs.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")}
    for at, (we, they) in enumerate(zip(mask, expected["assistant_masks"], strict=False)):
        around = ids[at - 1] in ends or (at + 1 < len(mask) and mask[at + 1])
        assert we == they or (they and theirs.decode([ids[at]]) == "\n" and around), at
