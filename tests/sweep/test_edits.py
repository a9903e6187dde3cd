"""An input is edited, and the same command comes again: what runs again, counted. Stages run in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from in_process import in_process

from bench.cli import main
from bench.stats.frames import load
from bench.sweep import execute, fetching
from bench.sweep.child import Outcome
from bench.worker import divergence
from bench.worker.models import _make_random

pytestmark = pytest.mark.slow

EVERYTHING = ["base evaluate", "base regression", "lora train", "lora evaluate", "lora regression"]
MEASURED = [stage for stage in EVERYTHING if "train" not in stage]
TUNED = [stage for stage in EVERYTHING if "lora" in stage]
WORK = "place"


def write(name: str, word: str, count: int) -> None:
    rows = [{"prompt": f"{word} {n}?", "target": str(n)} for n in range(count)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def replaced(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new, 1))


def other_weights() -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file("model/model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, "model/model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[str]]]:
    """A function that gives the sweep's command and returns the stages that ran; it ran once before."""
    folder, done = tmp_path_factory.mktemp(WORK), list[str]()

    def counted(run: Path, stage: str, *arguments: Any) -> Outcome:
        if stage in ("train", "evaluate", "regression"):
            done.append(f"{run.name.partition('-')[0]} {stage}")
        return in_process(run, stage, *arguments)

    def command(*settings: str, where: str = ".", sweep: str = "edits") -> list[str]:
        done.clear()
        files = [f"task.{split}_file={where}/{split}.jsonl" for split in ("train", "validation", "test")]
        given = ["-m", "method=base,lora", "experiment=smoke", "model=folder", f"model.location={where}/model",
                 "task=jsonl", *files, "task.metrics=[exact_match]", "task.max_new_tokens=4", "suite=local",
                 f"suite.path={where}/suite", "train.max_steps=2", f"sweep={sweep}", *settings]  # fmt: skip
        assert main(given) == 0
        return list(done)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for module in (execute, fetching):
            patch.setattr(module, "run_stage", counted)
        patch.setattr("bench.cli._report", lambda *_: True)  # seconds of charts after each command
        texts = divergence.general_texts
        patch.setattr(divergence, "general_texts", lambda *given: texts(*given)[::16])  # likewise
        _make_random(Path("model"))
        write("train.jsonl", "How many is", 24)
        write("validation.jsonl", "Count", 8)
        write("test.jsonl", "Say", 8)
        Path("suite").mkdir()
        pairs = [
            {"sentence_good": f"The cat {verb}.", "sentence_bad": f"The cats {verb}."} for verb in ("eats", "runs")
        ]
        Path("suite/pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        assert command() == EVERYTHING
        yield command


def test_nothing_runs_again_where_nothing_changed(ran) -> None:
    assert ran() == []
    for name in ("model", "suite"):
        shutil.copytree(name, f"copy/{name}")
    for split in ("train", "validation", "test"):
        shutil.copy(f"{split}.jsonl", "copy")
    assert ran(where=str(Path("copy").resolve())) == []  # the same content elsewhere


@pytest.mark.parametrize(
    ("edit", "again"),
    [
        (lambda: replaced("train.jsonl", '"7"', '"8"'), TUNED),
        (lambda: replaced("test.jsonl", "Say 3", "Name 3"), MEASURED),  # a prompt alone
        (lambda: replaced("suite/pairs.jsonl", "eats", "sleeps"), MEASURED),
        (other_weights, EVERYTHING),
        (lambda: replaced("model/chat_template.jinja", "|>{{ m['content'] }}", "|> {{ m['content'] }}"), EVERYTHING),
    ],
    ids=["training file", "test prompt", "suite", "weights", "chat template"],
)
def test_an_edit_runs_its_stage_and_later_ones_again(ran, edit: Callable[[], None], again: list[str]) -> None:
    edit()
    assert ran() == again


@pytest.mark.parametrize(
    ("setting", "again"),
    [
        ("suite.items_per_task=1", MEASURED),
        ("task.test_examples=4", ["base evaluate", "lora evaluate"]),  # a suite reads none of them
        ("hardware.generate_batch=2", MEASURED),
    ],
)
def test_a_setting_of_evaluation_trains_nothing(ran, setting: str, again: list[str]) -> None:
    ran()  # whatever the tests before left to do
    assert ran(setting) == again


def test_another_sweep_takes_over_what_was_made_from_the_same_content(ran) -> None:
    replaced("train.jsonl", '"9"', '"1"')
    assert ran(sweep="other") == TUNED  # the base of the same content; a training on older data is none
    assert ran(sweep="third") == ["lora evaluate"]


def test_runs_of_other_content_are_not_compared(ran) -> None:
    from bench.fairness import reasons_against

    assert ran() == ["lora evaluate"]  # its training and its suite are taken over too
    records = [record for record in load("results/edits").records if record.method == "lora"]
    newest = max(records, key=lambda record: record.started_at)
    names = {reason.name for other in records if other is not newest for reason in reasons_against(newest, other)}
    assert {"task", "stream"} <= names
