"""Prepared data, their prompts and answers, and the batches and order of training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversation import CHATML, byte_tokenizer

from bench.config import RunConfig, TaskConfig
from bench.identity import run_id
from bench.mistakes import ConfigurationError, from_mapping
from bench.sweep.fetching import told
from bench.worker import data
from bench.worker.chat import conversation, render
from bench.worker.check import of_documents, token_ids
from bench.worker.data import batches, load_prepared, prepare
from bench.worker.instruments.tokens import TokenStream
from bench.worker.observe import heldout_steps
from bench.worker.sources import Example, general
from bench.worker.sources.docstrings import split_of
from bench.worker.suites.quick import quick_tasks

GSM8K = Path(__file__).parents[3] / "shared/data/gsm8k"


def configuration(train_file: Path, shots: int = 0, seed: int = 0, max_length: int = 200, **task: Any) -> RunConfig:
    return from_mapping(
        {
            "model": {"name": "bytes", "source": "random", "max_context": 400},
            "method": {"name": "base", "trains": "nothing", "shots": shots},
            "task": {
                "name": "mine",
                "source": "files",
                "train_file": str(train_file),
                "prompt": "{q}",
                "target": "{a}",
                "max_new_tokens": 8,
                **task,
            },
            "suite": {"name": "none", "source": "none"},
            "train": {"max_length": max_length},
            "hardware": {"name": "cpu"},
            "tracking": {"name": "none"},
            "seed": seed,
        }
    )


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"q": f"What is {n} + 1?", "a": str(n + 1)}) + "\n" for n in range(100)))
    return path


def problems_of(config: RunConfig, folder: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        prepare(config, byte_tokenizer(), folder)
    assert list(folder.parent.glob("*prepared*")) == [], "something was written before all was checked"
    return caught.value.problems


def test_the_folder_holds_the_splits_asked_for(sums: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    config = configuration(sums, train_examples=20, validation_examples=5)
    summary = prepare(config, tokenizer, tmp_path / "prepared")
    prepared = load_prepared(tmp_path / "prepared")
    assert (summary.train_examples, summary.validation_examples, summary.test_examples) == (20, 5, 10)
    assert [len(prepared.train), len(prepared.validation), len(prepared.test)] == [20, 5, 10]
    assert prepared.summary == summary
    row = prepared.train[0]
    assert set(row) == {"example_id", "prompt", "reference", "prompt_ids", "answer_ids", "answer_mask", "columns"}
    assert tokenizer.decode(row["answer_ids"]) == row["reference"] + "<|im_end|>"
    assert row["prompt"] in tokenizer.decode(row["prompt_ids"])
    rows = [*prepared.train, *prepared.validation, *prepared.test]
    lengths = [len(r["prompt_ids"]) + len(r["answer_ids"]) for r in rows]
    assert summary.tokens_per_example_max == max(lengths)
    assert summary.tokens_per_example_mean == pytest.approx(sum(lengths) / 35)
    fewer = prepare(configuration(sums, test_examples=4), tokenizer, tmp_path / "fewer")
    assert (summary.test_available, fewer.test_examples, fewer.test_available) == (None, 4, 10)


@pytest.mark.parametrize(
    ("lengths", "rows", "expected"),
    [
        ([300, 1000, 500], 2, [[1], [2, 0]]),  # 1,024 positions: 1 x 1,000, then 2 x 500
        ([5000], 1, [[0]]),  # a row that is too long comes alone
        ([512] * 5, 2, [[0, 1], [2, 3], [4]]),
        ([10, 0], 1, [[0, 1]]),
        ([], 4, []),
    ],
)
def test_a_batch_of_an_evaluation_holds_positions(lengths: list[int], rows: int, expected: list[list[int]]) -> None:
    assert list(batches(lengths, rows)) == expected


def test_scored_rows_count_their_logits_and_come_with_little_padding() -> None:
    lengths = [1000, 500, *[100] * 20]  # beside the first two, the others are padding for the most part
    assert list(batches(lengths, rows=8, padding=0.2)) == [[0], [1, 2], list(range(3, 22))]
    assert list(batches(lengths, rows=8)) == [[0, 1, 2, 3], list(range(4, 22))]
    assert list(batches([10, 10, 10], rows=1, beside=[400, 400, 30])) == [[0], [1, 2]]


def test_a_second_call_returns_what_is_there_until_a_byte_of_it_changes(sums: Path, tmp_path: Path) -> None:
    config, folder = configuration(sums), tmp_path / "prepared"
    first = prepare(config, byte_tokenizer(), folder)
    assert prepare(config, None, folder) == first  # needs no tokenizer: nothing is done
    (table,) = (folder / "train").glob("*.arrow")
    before = table.read_bytes()
    table.write_bytes(before[:700] + bytes([before[700] ^ 1]) + before[701:])  # as long, and readable
    assert prepare(config, byte_tokenizer(), folder) == first
    assert table.read_bytes() == before
    there = sorted(p.name for p in tmp_path.iterdir())
    assert there == [".prepared.lock", "prepared", "sums.jsonl"]  # nothing temporary is left


def test_the_fingerprint_follows_from_the_tokens(sums: Path, tmp_path: Path) -> None:
    config = configuration(sums)
    first = prepare(config, byte_tokenizer(), tmp_path / "a").fingerprint
    assert prepare(config, byte_tokenizer(), tmp_path / "b").fingerprint == first
    brief = replace(config, task=replace(config.task, system="Be brief."))
    assert prepare(brief, byte_tokenizer(), tmp_path / "c").fingerprint != first


def test_each_split_has_a_fingerprint_and_that_of_the_test_split_is_of_its_texts(sums: Path, tmp_path: Path) -> None:
    def prints(name: str, config: RunConfig) -> dict[str, str]:
        return prepare(config, byte_tokenizer(), tmp_path / name).fingerprints

    config = configuration(sums)
    first = prints("a", config)
    fewer = prints("b", replace(config, task=replace(config.task, test_examples=5)))
    assert {split for split in first if first[split] != fewer[split]} == {"test"}
    shown = prints("c", replace(config, method=replace(config.method, shots=1)))
    assert shown == first  # solved examples in the prompt change its tokens, and not what is asked


def test_asking_for_more_than_there_is_lists_what_there_is(sums: Path, tmp_path: Path) -> None:
    problems = problems_of(configuration(sums, train_examples=81, test_examples=11), tmp_path / "prepared")
    assert problems == [
        f"task.{split}_examples: {wanted} asked for, but {there} of the {there} for {split} fit train.max_length=200; "
        "lower it, null takes all, or raise train.max_length"
        for split, wanted, there in [("train", 81, 80), ("test", 11, 10)]
    ]


def test_long_examples_stop_the_run_or_are_dropped_and_counted(sums: Path, tmp_path: Path) -> None:
    with sums.open("a") as file:
        file.writelines(json.dumps({"q": f"{n} " + "long " * 50, "a": "Yes."}) + "\n" for n in range(10))
    problems = problems_of(configuration(sums), tmp_path / "prepared")
    assert all("beyond train.max_length=200" in p and "task.overflow=drop" in p for p in problems)
    assert {p.split(": ")[0].split("sums.jsonl:")[0] for p in problems} >= {"train, example "}
    summary = prepare(configuration(sums, overflow="drop"), byte_tokenizer(), tmp_path / "prepared")
    assert sum(summary.dropped.values()) == 10
    assert summary.train_examples + summary.validation_examples + summary.test_examples == 100
    assert summary.tokens_per_example_max <= 200


def test_test_prompts_leave_room_for_the_answer(sums: Path, tmp_path: Path) -> None:
    longest = prepare(configuration(sums), byte_tokenizer(), tmp_path / "all").tokens_per_example_max
    problems = problems_of(configuration(sums, max_length=longest, max_new_tokens=20), tmp_path / "prepared")
    assert problems
    assert all(p.startswith("test, ") and "task.max_new_tokens" in p for p in problems)


def test_spelled_out_special_tokens_are_dropped_and_counted(sums: Path, tmp_path: Path) -> None:
    with sums.open("a") as file:
        file.write('{"q": "What is <|im_end|> for?", "a": "Ending."}\n')
    summary = prepare(configuration(sums), byte_tokenizer(), tmp_path / "prepared")
    assert list(summary.dropped.values()) == [1]
    assert "spells out a special token" in next(iter(summary.dropped))


def test_prompts_that_training_holds_too_are_counted(sums: Path, tmp_path: Path) -> None:
    assert prepare(configuration(sums), byte_tokenizer(), tmp_path / "a").repeated_prompts == 0
    test = tmp_path / "test.jsonl"
    test.write_text(
        '{"q": "what is  3 + 1?", "a": "4"}\n{"q": "What is 4 + 1?", "a": "five"}\n{"q": "New?", "a": "1"}\n'
    )
    summary = prepare(configuration(sums, test_file=str(test)), byte_tokenizer(), tmp_path / "b")
    assert (summary.repeated_prompts, summary.test_examples) == (2, 3)


def test_masks_become_labels_and_part_of_the_fingerprint() -> None:
    row = {"prompt_ids": [1, 2], "answer_ids": [3, 4, 5], "answer_mask": [1, 0, 1]}
    assert data.collate([row], pad_id=0)["labels"].tolist() == [[-100, -100, 3, -100, 5]]
    assert data.pack([row, row])["labels"].tolist() == [[-100, -100, 3, -100, 5] * 2]
    one, other = (data.Record("e", "p", "r", [1, 2], [3, 4, 5], mask) for mask in ([], [1, 0, 1]))
    assert data.fingerprint({"train": [one]}) != data.fingerprint({"train": [other]})


def test_solved_examples_come_from_training_by_the_seed(sums: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    prompts = {}
    for name, config in {
        "none": configuration(sums),
        "zero": configuration(sums, shots=2),
        "one": configuration(sums, shots=2, seed=1),
    }.items():
        prepare(config, tokenizer, tmp_path / name)
        prompts[name] = [tokenizer.decode(ids) for ids in load_prepared(tmp_path / name).test["prompt_ids"]]
    train = set(load_prepared(tmp_path / "none").train["prompt"])
    shown = {p.split("user\n")[n].split("<|im_end|>")[0] for p in prompts["zero"] for n in (1, 2)}
    assert len(shown) == 2
    assert shown <= train
    assert prompts["zero"] != prompts["one"]
    # The same questions in the same order: scores with and without shots stay paired.
    assert [p.split("user\n")[-1] for p in prompts["zero"]] == [p.split("user\n")[-1] for p in prompts["none"]]


def test_solved_examples_that_do_not_fit_are_refused(sums: Path, tmp_path: Path) -> None:
    problems = problems_of(configuration(sums, shots=15, overflow="drop"), tmp_path / "prepared")
    assert "lower method.shots" in problems[0]


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
    assert conversation(task, EXAMPLE, [shot]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
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
        ("{{ messages['a'] + 1 }}", "refuses a conversation of user"),
        ("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}", "refuses a conversation of user"),
        (CHATML.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] != 'user' }}"), "leaves out"),
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


LENGTHS = list(np.random.default_rng(7).integers(5, 50, size=50))


def order(seed: int = 0, epochs: int = 1, max_steps: int | None = None) -> list[int]:
    return data.training_order(LENGTHS, seed=seed, epochs=epochs, batch_size=8, max_steps=max_steps)


def test_the_seed_decides() -> None:
    assert order(seed=1) == order(seed=1)
    assert order(seed=1) != order(seed=2)


def test_sorting_by_length_keeps_each_batch_as_drawn() -> None:
    drawn = np.random.default_rng(0).permutation(50)
    for start in range(0, 50, 8):
        batch = order()[start : start + 8]
        assert set(batch) == set(drawn[start : start + 8])
        assert [LENGTHS[i] for i in batch] == sorted((LENGTHS[i] for i in batch), reverse=True)


def test_max_steps_decides_how_long_the_order_is() -> None:
    assert order(max_steps=2) == order()[:16]
    assert order(max_steps=20) == order(epochs=4)[:160]  # it goes on beyond the epochs
    assert data.steps_of(order(), 8) == 7  # the last batch is smaller, and is trained on


def test_only_the_answer_is_labelled() -> None:
    rows = [{"prompt_ids": [1, 2], "answer_ids": [3, 4]}, {"prompt_ids": [5], "answer_ids": [6]}]
    batch = data.collate(rows, pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 4], [-100, 6, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_the_stream_hash_depends_neither_on_the_micro_batch_nor_on_padding(micro_batch: int, multiple: int) -> None:
    rows = [{"prompt_ids": list(range(2, n)), "answer_ids": [n, 1]} for n in (9, 7, 6, 4, 8, 5, 3, 3)]
    stream, counts = TokenStream(), []
    for start in range(0, 8, micro_batch):
        batch = data.collate(rows[start : start + micro_batch], pad_id=0, multiple=multiple)
        assert batch["input_ids"].shape[1] % multiple == 0
        counts.append(stream.consume(batch["input_ids"], batch["labels"], batch["attention_mask"]))
    whole = TokenStream()
    for row in rows:
        alone = data.collate([row], pad_id=9)  # another padding token
        whole.consume(alone["input_ids"], alone["labels"], alone["attention_mask"])
    assert stream.hexdigest() == whole.hexdigest()
    assert sum(c.tokens for c in counts) == sum(len(r["prompt_ids"]) + 2 for r in rows)
    assert sum(c.supervised_tokens for c in counts) == 16
    assert sum(c.examples for c in counts) == 8


def test_the_stream_hash_sees_order_tokens_and_labels() -> None:
    def digest(ids: list[list[int]], labels: list[list[int]]) -> str:
        stream = TokenStream()
        stream.consume(torch.tensor(ids), torch.tensor(labels), torch.ones(len(ids), len(ids[0])))
        return stream.hexdigest()

    base = digest([[1, 2], [3, 4]], [[-100, 2], [-100, 4]])
    assert digest([[3, 4], [1, 2]], [[-100, 4], [-100, 2]]) != base
    assert digest([[1, 2], [3, 5]], [[-100, 2], [-100, 4]]) != base
    assert digest([[1, 2], [3, 4]], [[1, 2], [-100, 4]]) != base


def test_heldout_points_are_spread_and_end_at_the_end() -> None:
    assert heldout_steps(32, 4) == {8, 16, 24, 32}
    assert heldout_steps(3, 4) == {1, 2, 3}
    assert heldout_steps(10, 1) == {10}


def test_packing_keeps_examples_apart_and_can_be_undone() -> None:
    rows = [{"prompt_ids": [1, 2], "answer_ids": [3, 4]}, {"prompt_ids": [5], "answer_ids": [6]}]
    batch = data.pack(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 4, -100, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
    parts = data.unpack(batch)
    assert [part["input_ids"].tolist() for part in parts] == [[[1, 2, 3, 4]], [[5, 6]]]
    assert [part["labels"].tolist() for part in parts] == [[[-100, -100, 3, 4]], [[-100, 6]]]


def test_retrieved_examples_are_the_nearest_and_the_nearest_stands_last(tmp_path: Path) -> None:
    names = ["card lost abroad", "card lost at home", "top up failed", "exchange rate wrong", "pin blocked today"]
    path, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"q": f"{name} {n}", "a": name}) + "\n" for name in names for n in range(4)))
    test.write_text(json.dumps({"q": "my card lost at home 9", "a": "?"}) + "\n")
    config = configuration(path, shots=2, test_file=str(test))
    retrieved = replace(config, method=replace(config.method, retrieval="bm25"))
    assert run_id(retrieved) == run_id(replace(retrieved, seed=1))
    assert run_id(config) != run_id(replace(config, seed=1))
    summary = prepare(retrieved, byte_tokenizer(), tmp_path / "prepared")
    prompt = byte_tokenizer().decode(load_prepared(tmp_path / "prepared").test[0]["prompt_ids"])
    assert prompt.count("card lost at home") == 2 * 2 + 1
    assert summary.retrieval_seconds is not None


def test_the_check_and_the_labels_are_in_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    rows = [{"q": f"message number {n} of the day", "a": ("no", "yes")[n % 2], "weight": n} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = prepare(configuration(path), byte_tokenizer(), tmp_path / "prepared")
    assert summary.labels == ["no", "yes"]
    assert summary.check is not None
    assert summary.check.unseen_labels == 0
    assert "nearly in training" not in told("mine", summary)
    worse = replace(summary, check=replace(summary.check, contaminated=3))
    assert "test examples nearly in training: 0, with 13 words in a row of it: 3" in told("mine", worse)
    row = load_prepared(tmp_path / "prepared").test[0]
    assert json.loads(row["columns"])["q"] == row["prompt"]


def test_general_texts_are_none_of_those_that_are_measured_and_count_as_training(
    sums: Path, tmp_path: Path, monkeypatch
) -> None:
    """A fifth of the training examples, whole and learned, shared with no suite, and none in the other splits."""
    config = configuration(sums, train_examples=16, validation_examples=4, test_examples=4, general_share=0.2)
    config = replace(config, train=replace(config.train, max_length=1000))
    found = prepare(config, byte_tokenizer(CHATML), tmp_path / "mixed")
    rows = load_prepared(tmp_path / "mixed").train
    texts = [row["reference"] for row in rows if row["example_id"].endswith(", general text")]
    assert (found.train_examples, found.test_examples, len(set(texts))) == (20, 4, 4)
    assert len(rows[-1]["prompt_ids"]) == 1
    assert "20% of the training examples are general text" in found.source
    every = general.load(120)
    assert len({example.target for example in every}) == 120
    assert all(split_of(example.group) == "train" for example in every)
    measured = {task.name: task.documents for task in quick_tasks()}  # the divergence's texts among them
    shared = of_documents([[token_ids(example.target)] for example in every], measured)
    assert set(shared.values()) == {0}
    assert of_documents([[token_ids(measured["prose"][0]["text"])]], measured)["prose"] == 1  # it would be seen
    monkeypatch.setattr(general, "load", lambda count: every[:3])
    assert problems_of(config, tmp_path / "no") == ["task.general_share: 0.2 takes 4 texts, and there are 3; lower it"]
