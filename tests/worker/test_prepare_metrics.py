"""Metrics are held against the prepared references before anything is trained."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conversation import byte_tokenizer
from test_data import configuration

from bench.config import RunConfig
from bench.identity import data_folder
from bench.mistakes import ConfigurationError
from bench.worker.data import load_prepared, prepare
from bench.worker.evaluate import blind
from bench.worker.prepare import metric_problems


@pytest.fixture
def prepared(tmp_path: Path):
    """Returns a function from answers and settings of the task to the configuration of their prepared data."""
    calls = itertools.count()  # the content of a file names its data only where `compose` has looked at it

    def make(answers: list[str], **task: Any) -> RunConfig:
        path = tmp_path / "train.jsonl"
        rows = [{"q": f"question {n}", "a": answers[n % len(answers)]} for n in range(60)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = configuration(path, **task)
        config = replace(config, paths=replace(config.paths, cache=str(tmp_path / f"cache-{next(calls)}")))
        prepare(config, byte_tokenizer(), data_folder(config))
        return config

    return make


def test_references_must_be_among_the_labels(prepared) -> None:
    (problem,) = metric_problems(prepared(["Y", "N", "yes"], metrics=["label"], labels=["yes", "no"]))
    assert "test references are none of the 2 labels" in problem
    assert "'Y' (" in problem
    assert "'yes'" not in problem


def test_targets_that_are_no_labels_are_refused_and_others_are_the_labels(prepared) -> None:
    (problem,) = metric_problems(prepared([f"text {n}" for n in range(60)], metrics=["label"]))
    assert "too many different texts" in problem
    config = prepared(["*", "**"], metrics=["label"])
    assert metric_problems(config) == []
    assert load_prepared(data_folder(config)).summary.labels == ["*", "**"]


def test_two_labels_that_are_one_to_the_metric_are_a_mistake(prepared) -> None:
    with pytest.raises(ConfigurationError, match=r"task.labels: 'Yes' and 'yes\.' are one label"):
        prepared(["Yes"], labels=["Yes", "no", "yes."])


def test_a_scorer_of_ones_own_is_tried_before_anything_is_trained(prepared, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def grade(p, r, e):\n    return e['difficulty']\n")
    (problem,) = metric_problems(prepared(["a", "b"], metrics=[f"{tmp_path}/mine.py:grade", "bleu"]))
    assert "grade failed on all 5 examples; first KeyError: 'difficulty'" in problem
    (problem,) = metric_problems(prepared(["a", "b"], metrics=[f"{tmp_path}/mine.py:grad"]))
    assert "has no function 'grad'" in problem


def test_references_that_a_metric_cannot_read_are_counted(prepared) -> None:
    config = prepared(["word", "two words", "7", "👍"], metrics=["numeric", "rouge2", "rougeL", "chrf", "json_valid"])
    rows = list(load_prepared(data_folder(config)).test)
    texts = [row["reference"] for row in rows]
    assert blind(config, rows) == {
        "numeric": len(texts) - texts.count("7"),
        "rouge2": len(texts) - texts.count("two words"),
        "rougeL": texts.count("👍"),
        "json_valid": len(texts) - texts.count("7"),
    }
