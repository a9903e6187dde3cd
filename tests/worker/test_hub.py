"""Hub data sets, stood in for by local folders of the same layout: the library reads both by one function."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from bench.config import TaskConfig
from bench.mistakes import ConfigurationError
from bench.worker.sources import hub

CARD = """---
dataset_info:
  features:
  - name: text
    dtype: string
  - name: kind
    dtype:
      class_label:
        names:
          '0': cold
          '1': warm
  splits:
  - name: train
    num_examples: 60
  - name: test
    num_examples: 10
---
"""


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def data_set(folder: Path, **splits: list[dict[str, Any]]) -> str:
    folder.mkdir()
    for name, records in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(folder)


def task(**settings: Any) -> TaskConfig:
    return TaskConfig(name="t", source="hub", **{"prompt": "{text}", "target": "{kind}", **settings})


def texts(first: int, last: int) -> list[dict[str, Any]]:
    return [{"text": f"It is {n} degrees.", "kind": "warm" if n > 20 else "cold"} for n in range(first, last)]


def test_a_missing_validation_split_is_cut_and_leaks_are_dropped_from_training(tmp_path: Path) -> None:
    name = data_set(tmp_path / "d", train=[*texts(0, 60), *texts(0, 5)], test=texts(55, 70))
    loaded = hub.load(task(hub_dataset=name))
    assert loaded.dropped == {"train: also in test": 5, "train: duplicate": 5}
    assert {split: len(examples) for split, examples in loaded.splits.items()} == {
        "train": 50,
        "validation": 5,
        "test": 15,
    }
    assert loaded.splits["test"][0].example_id.startswith("test:")


def test_records_that_nobody_can_mend_are_dropped_and_counted(tmp_path: Path) -> None:
    name = data_set(tmp_path / "d", train=[*texts(0, 20), {"text": "", "kind": "warm"}], test=texts(20, 30))
    assert hub.load(task(hub_dataset=name)).dropped == {"train: a column is empty or not a text": 1}


def test_training_data_may_come_from_another_set(tmp_path: Path) -> None:
    tested = data_set(tmp_path / "tested", test=texts(0, 10))
    trained = data_set(tmp_path / "trained", train=[{"query": f"q{n}", "response": f"r{n}"} for n in range(30)])
    settings = {"hub_dataset": tested, "train_hub_dataset": trained}
    with pytest.raises(ConfigurationError, match=r"task.prompt: \{text\} is not a column"):
        hub.load(task(**settings))
    loaded = hub.load(task(**settings, train_prompt="{query}", train_target="{response}"))
    assert len(loaded.splits["train"]) == 27
    assert loaded.splits["train"][0].prompt.startswith("q")
    assert loaded.splits["test"][0].prompt.startswith("It is")


def test_class_numbers_take_the_names_that_the_set_declares(tmp_path: Path) -> None:
    numbered = [{"text": f"It is {n} degrees.", "kind": int(n > 20)} for n in range(70)]
    name = data_set(tmp_path / "d", train=numbered[:60], test=numbered[60:])
    Path(name, "README.md").write_text(CARD)
    loaded = hub.load(task(hub_dataset=name, label_column="kind"))
    assert {e.target for e in loaded.splits["train"]} == {"cold", "warm"}


def test_the_labels_of_a_prompt_are_the_training_targets(tmp_path: Path) -> None:
    name = data_set(tmp_path / "d", train=texts(0, 60), test=texts(60, 70))
    asked = task(hub_dataset=name, prompt="One of {labels}: {text}")
    assert hub.check_columns_without_download(asked) == []
    loaded = hub.load(asked)
    for split in ("train", "test"):
        assert loaded.splits[split][0].prompt.startswith("One of cold, warm: It is")
    free = [{"text": f"text {n}", "kind": f"answer {n}"} for n in range(30)]
    other = data_set(tmp_path / "free", train=free, test=texts(0, 5))
    with pytest.raises(ConfigurationError, match=r"\{labels\} is not a column"):
        hub.load(task(hub_dataset=other, prompt="One of {labels}: {text}"))


def test_the_labels_of_a_prompt_may_be_those_that_the_set_declares(tmp_path: Path) -> None:
    numbered = [{"text": f"It is {n} degrees.", "kind": int(n > 20)} for n in range(70)]
    name = data_set(tmp_path / "d", train=numbered[:60], test=numbered[60:])
    Path(name, "README.md").write_text(CARD)
    asked = task(hub_dataset=name, label_column="kind", prompt="{labels}? {text}")
    assert hub.check_columns_without_download(asked) == []
    assert hub.load(asked).splits["test"][0].prompt.startswith("cold, warm? It is")


def test_columns_and_splits_are_checked_from_the_description(tmp_path: Path) -> None:
    name = data_set(tmp_path / "d", train=texts(0, 3), test=texts(3, 5))
    Path(name, "README.md").write_text(CARD)
    problems = hub.check_columns_without_download(task(hub_dataset=name, prompt="{txt}", test_split="tset"))
    assert problems == [
        f"task.prompt: {{txt}} is not a column (did you mean 'text'?); allowed: kind, text (in {name})",
        f"task.test_split: {name} has no 'tset' (did you mean 'test'?); allowed: test, train",
    ]
    assert hub.check_columns_without_download(task(hub_dataset=name)) == []


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'a/b' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    (problem,) = hub.check_columns_without_download(task(hub_dataset="a/b"))
    with pytest.raises(ConfigurationError) as caught:
        hub.load(task(hub_dataset="a/b"))
    assert caught.value.problems == [problem]
    for words in ("'a/b'", "cannot be reached", "HF_HOME", "task=jsonl", "task=docstrings"):
        assert words in problem


def test_an_unknown_split_is_explained(tmp_path: Path) -> None:
    name = data_set(tmp_path / "d", train=texts(0, 20), test=texts(20, 30))
    with pytest.raises(ConfigurationError, match=r"Unknown split.*check the name"):
        hub.load(task(hub_dataset=name, validation_split="dev"))
