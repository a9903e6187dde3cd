"""The user's own files: every mistake is named with its line, and no example is in two splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.config import TaskConfig
from bench.mistakes import ConfigurationError
from bench.worker.sources import files


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def questions(first: int, last: int) -> list[dict[str, str]]:
    return [{"q": f"What is {n} + 1?", "a": str(n + 1)} for n in range(first, last)]


def task(**settings: Any) -> TaskConfig:
    return TaskConfig(name="mine", source="files", **{"prompt": "{q}", "target": "{a}", **settings})


def problems_of(**settings: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        files.load(task(**settings))
    return caught.value.problems


def test_missing_splits_are_cut_and_stay_the_same(tmp_path: Path) -> None:
    records = questions(0, 100)
    loaded = files.load(task(train_file=write(tmp_path / "a.jsonl", records)))
    assert {name: len(examples) for name, examples in loaded.splits.items()} == {
        "train": 80,
        "validation": 10,
        "test": 10,
    }
    # The order of the lines decides neither the cut nor the order of the examples.
    again = files.load(task(train_file=write(tmp_path / "b.jsonl", records[::-1])))
    for split, examples in loaded.splits.items():
        assert [e.prompt for e in examples] == [e.prompt for e in again.splits[split]]
    assert [e.prompt for e in loaded.splits["train"]] != sorted(e.prompt for e in loaded.splits["train"])


def test_one_prompt_with_two_answers_stays_on_one_side(tmp_path: Path) -> None:
    records = [{"q": f"Name number {n // 4}.", "a": f"answer {n}"} for n in range(200)]
    splits = files.load(task(train_file=write(tmp_path / "a.jsonl", records))).splits
    prompts = [{e.prompt for e in splits[name]} for name in ("train", "validation", "test")]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    assert sum(map(len, splits.values())) == 200


def test_csv_lines_are_counted_through_quoted_newlines(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('q,a\n"two\nlines",x\nonly one cell\n')
    assert problems_of(train_file=str(path)) == [f"{path}:4: 1 cells, but the header names 2 columns"]


def test_malformed_lines_are_named_ten_and_then_counted(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"q": "x", "a": "y"}\n[1]\n' + "{oops\n" * 12)
    problems = problems_of(train_file=str(path))
    assert len(problems) == 11
    assert problems[0].startswith(f"{path}:3: not JSON")
    assert problems[-1] == "... and 3 more like these"


def test_unusable_cells_are_named_with_their_line(tmp_path: Path) -> None:
    bad = [{"q": "x", "a": None}, {"q": "x", "a": 72}, {"q": "x"}, {"q": ["x"], "a": "y"}, {"q": "x", "a": " "}]
    problems = problems_of(train_file=write(tmp_path / "d.jsonl", questions(0, 20) + bad))
    assert [p.split(": ", 1)[0] for p in problems] == [f"d.jsonl:{n}" for n in range(21, 26)]
    for problem, words in zip(
        problems, ["is null", "holds a int (72)", "no column 'a'", "a list", "empty"], strict=True
    ):
        assert words in problem


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "x.xlsx").write_text("")
    problems = problems_of(
        train_file=str(tmp_path / "empty.jsonl"),
        validation_file=str(tmp_path / "x.xlsx"),
        test_file=str(tmp_path / "missing.jsonl"),
    )
    assert len(problems) == 3
    assert "allowed: .jsonl, .json, .csv, .parquet, also with .gz" in problems[0]
    assert "not found" in problems[1]
    assert "holds no records" in problems[2]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("{qq}", "{qq} is not a column (did you mean 'q'?); allowed: a, q"),
        ("{q.__class__}", "is not a column's name"),
        ("{q!r}", "takes no format"),
        ("{q", "is not a template"),
        ("always the same", "names no column"),
    ],
)
def test_templates_are_checked_against_the_columns(tmp_path: Path, prompt: str, words: str) -> None:
    (problem,) = problems_of(train_file=write(tmp_path / "d.jsonl", questions(0, 20)), prompt=prompt)
    assert problem.startswith("task.prompt: ")
    assert words in problem


def test_label_numbers_become_names(tmp_path: Path) -> None:
    records = [{"q": f"text {n}", "a": n % 2} for n in range(20)] + [{"q": "bad", "a": 2}]
    settings = {"train_file": write(tmp_path / "d.jsonl", records), "labels": ["no", "yes"], "label_column": "a"}
    assert problems_of(**settings) == ["d.jsonl:21: column 'a' is 2; allowed: 0 to 1, an index of task.labels"]
    settings["train_file"] = write(tmp_path / "d.jsonl", records[:20])
    splits = files.load(task(**settings, metrics=["label"])).splits
    assert {e.target for e in splits["train"]} == {"no", "yes"}


def test_examples_of_two_files_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train.jsonl", questions(0, 50)), write(tmp_path / "test.jsonl", questions(40, 60))
    (problem,) = problems_of(train_file=train, test_file=test)
    assert "overlap: 10 examples" in problem
    assert "train.jsonl:41 = test.jsonl:1" in problem
    assert "task.test_file=null" in problem
    assert "task.overlap=drop" in problem
    loaded = files.load(task(train_file=train, test_file=test, overlap="drop"))
    assert loaded.dropped == {"train: also in test": 10}
    assert len(loaded.splits["train"]) + len(loaded.splits["validation"]) == 40
    assert len(loaded.splits["test"]) == 20


def test_the_labels_of_a_prompt_are_the_training_targets(tmp_path: Path) -> None:
    rows = [{"q": f"message {n}", "a": ("no", "yes", "maybe")[n % 3]} for n in range(30)]
    loaded = files.load(task(train_file=write(tmp_path / "a.jsonl", rows), prompt="One of {labels}: {q}"))
    assert loaded.splits["train"][0].prompt.startswith("One of maybe, no, yes: message")
    folder = tmp_path / "splits"  # whose test split comes before the training split by name
    folder.mkdir()
    write(folder / "test.jsonl", [{"q": "another message", "a": "yes"}])
    write(folder / "train.jsonl", rows)
    loaded = files.load(task(train_file=str(folder), prompt="One of {labels}: {q}"))
    assert loaded.splits["test"][0].prompt == "One of maybe, no, yes: another message"
    texts = [{"q": f"message {n}", "a": f"answer {n}"} for n in range(30)]
    (problem,) = problems_of(train_file=write(tmp_path / "b.jsonl", texts), prompt="One of {labels}: {q}")
    assert "{labels} is not a column" in problem
