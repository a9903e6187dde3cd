"""A team's own file and scorer through whole commands, on a tiny random model, with the stages in this process."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bench.cli import main
from bench.outcome import Status
from bench.record import Record, from_json
from bench.stats.frames import load

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_this_process")]


@pytest.fixture
def intents(tmp_path: Path) -> Path:
    """77 labels, six messages each; one message stands in it twice, and one with another intent."""
    file = tmp_path / "intents.csv"
    rows = [(f"Customer {n} of branch {n % 6} asks about topic {n // 6}", f"intent_{n // 6:02}") for n in range(462)]
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("text", "intent"), *rows, rows[0], (rows[1][0], "intent_76")])
    return file


def test_a_csv_of_77_labels_and_a_scorer_that_raises_once(
    intents: Path, tmp_path: Path, smoke, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    (tmp_path / "my_scores.py").write_text(
        "def grade(prediction, reference, example):\n"
        "    if example['intent'] == reference != prediction and reference.endswith('7'):\n"
        "        raise KeyError('no weight')\n"
        "    return {'length': len(prediction), 'right': prediction == reference}\n"
        "grade.higher_is_better = {'length': False}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = [f"task.train_file={intents}", "task.prompt={text}", "task.target={intent}", "suite=none"]
    own += ["task.metrics=[label,my_scores:grade]", "task.test_examples=40", "method.shots=3"]
    overrides = [*smoke("method=base_fewshot,base_retrieved"), *own]
    assert main(["-m", *overrides]) == 0
    said = capfd.readouterr().out
    found = [from_json(Record, path.read_bytes()) for path in tmp_path.rglob("record.json")]
    assert {record.method: record.status for record in found} == dict.fromkeys(
        ("base_fewshot", "base_retrieved"), Status.OK
    )
    for record in found:
        assert record.data is not None
        assert record.evaluate is not None
        assert len(record.data.labels or []) == 77
        assert list(record.evaluate.scores) == ["label", "grade.length", "grade.right"]
        assert record.evaluate.scales["grade.length"].higher_is_better is False
        assert "of 40 examples, first intents.csv:" in record.evaluate.unscored["grade"]
    assert "grade failed on" in said
    (retrieved,) = (record for record in found if record.method == "base_retrieved")
    assert retrieved.run_id.startswith("base_retrieved-tiny-random-jsonl-s--")  # no seed: nothing is drawn
    assert retrieved.data is not None
    assert retrieved.data.retrieval_seconds is not None
    arms = load(next(path for path in (tmp_path / "results").iterdir() if path.is_dir())).arms.set_index("arm")
    assert arms.loc["base_retrieved", "prompt_tokens_per_answer"] > 20
    assert arms.loc["base_retrieved", "answer_seconds"] > 0
    report = next((tmp_path / "results").rglob("report.md")).read_text()
    assert "train: duplicate 1" in report
    assert "prompt tokens an answer" in report


def test_the_data_command_shows_the_same_without_a_run(intents: Path, tmp_path: Path, smoke, capfd) -> None:
    test_file = tmp_path / "test.csv"
    test_file.write_text("text,intent\n" + "".join(intents.read_text().splitlines(keepends=True)[3:5]))
    own = [f"task.train_file={intents}", f"task.test_file={test_file}", "task.prompt={text}", "task.target={intent}"]
    own += ["task.metrics=[label,json_valid]", "task.test_examples=null", "suite=none"]
    overrides = [*smoke("method=lora"), *own]
    assert main(["data", *overrides]) == 0
    said = capfd.readouterr().out
    assert "train: also in test 2" in said
    assert "json_valid: 2 test references do not get its best score" in said
    assert not list((tmp_path / "results").glob("*"))
