"""Prepared data: complete or not there, the same for every method, nothing dropped in silence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conversation import byte_tokenizer

from bench import identity
from bench.config import ConfigurationError, RunConfig, from_mapping
from bench.worker.data import load_prepared, prepare

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
    assert set(row) == {"example_id", "prompt", "reference", "prompt_ids", "answer_ids"}
    assert tokenizer.decode(row["answer_ids"]) == row["reference"] + "<|im_end|>"
    assert row["prompt"] in tokenizer.decode(row["prompt_ids"])
    rows = [*prepared.train, *prepared.validation, *prepared.test]
    lengths = [len(r["prompt_ids"]) + len(r["answer_ids"]) for r in rows]
    assert summary.tokens_per_example_max == max(lengths)
    assert summary.tokens_per_example_mean == pytest.approx(sum(lengths) / 35)


def test_fewer_examples_are_a_prefix_of_more(sums: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    for count in (10, 30):
        prepare(configuration(sums, train_examples=count), tokenizer, tmp_path / str(count))
    few, many = load_prepared(tmp_path / "10"), load_prepared(tmp_path / "30")
    assert few.train["example_id"][:] == many.train["example_id"][:10]
    assert few.test["prompt_ids"][:] == many.test["prompt_ids"][:]


def test_a_second_call_returns_what_is_there_until_the_file_changes(sums: Path, tmp_path: Path) -> None:
    config, folder = configuration(sums), tmp_path / "prepared"
    first = prepare(config, byte_tokenizer(), folder)
    assert prepare(config, None, folder) == first  # needs no tokenizer: nothing is done
    with sums.open("a") as file:
        file.write('{"q": "A new question?", "a": "Yes."}\n')
    second = prepare(config, byte_tokenizer(), folder)
    assert second.fingerprint != first.fingerprint
    assert load_prepared(folder).summary == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prepared", "sums.jsonl"]  # nothing temporary is left


def test_the_fingerprint_follows_from_the_tokens(sums: Path, tmp_path: Path) -> None:
    config = configuration(sums)
    first = prepare(config, byte_tokenizer(), tmp_path / "a").fingerprint
    assert prepare(config, byte_tokenizer(), tmp_path / "b").fingerprint == first
    brief = replace(config, task=replace(config.task, system="Be brief."))
    assert prepare(brief, byte_tokenizer(), tmp_path / "c").fingerprint != first


def test_a_finished_folder_of_another_process_is_kept(
    sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process finishes between our look and our rename."""
    from bench.worker import data as module

    config, folder = configuration(sums), tmp_path / "prepared"
    theirs = prepare(config, byte_tokenizer(), folder)
    marker = folder / "theirs"
    marker.touch()
    looks = iter([None, theirs])
    monkeypatch.setattr(module, "_summary_if_current", lambda *_: next(looks))
    assert prepare(config, byte_tokenizer(), folder) == theirs
    assert marker.exists()


def test_asking_for_more_than_there_is_lists_what_there_is(sums: Path, tmp_path: Path) -> None:
    problems = problems_of(configuration(sums, train_examples=81, test_examples=11), tmp_path / "prepared")
    assert problems == [
        f"task.{split}_examples: {wanted} asked for, but sums.jsonl has {there} for {split} "
        "(train 80, validation 10, test 10); lower it, or null for all"
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


def test_an_empty_split_is_refused(sums: Path, tmp_path: Path) -> None:
    config = configuration(sums, max_length=30, overflow="drop")
    problems = problems_of(config, tmp_path / "prepared")
    assert problems[0] == "train: none of 80 examples fits train.max_length=30"
    assert len(problems) == 3


def test_spelled_out_special_tokens_are_dropped_and_counted(sums: Path, tmp_path: Path) -> None:
    with sums.open("a") as file:
        file.write('{"q": "What is <|im_end|> for?", "a": "Ending."}\n')
    summary = prepare(configuration(sums), byte_tokenizer(), tmp_path / "prepared")
    assert list(summary.dropped.values()) == [1]
    assert "spells out a special token" in next(iter(summary.dropped))


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


def test_the_folder_name_depends_on_the_seed_only_with_shots(sums: Path) -> None:
    keys = [identity.data_key(configuration(sums, shots=n, seed=s)) for n, s in [(0, 0), (0, 1), (2, 0), (2, 1)]]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


@pytest.mark.skipif(not GSM8K.exists(), reason="the shared sample data are not beside the project")
def test_real_questions_are_prepared(tmp_path: Path) -> None:
    config = configuration(
        GSM8K / "train.jsonl",
        test_file=str(GSM8K / "test.jsonl"),
        prompt="{question}",
        target="{answer}",
        train_examples=32,
        validation_examples=8,
        test_examples=16,
        overflow="drop",
        max_length=400,
    )
    summary = prepare(config, byte_tokenizer(), tmp_path / "prepared")
    assert (summary.train_examples, summary.validation_examples, summary.test_examples) == (32, 8, 16)
    assert all("#### " in reference for reference in load_prepared(tmp_path / "prepared").train["reference"])
