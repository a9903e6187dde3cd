"""Content names a run: where it lies does not count, what it holds does; damaged folders in the cache are remade."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from bench import identity
from bench.compose import compose
from bench.config import RunConfig
from bench.identity import (
    changed_inputs,
    data_key,
    is_whole,
    locked,
    make_once,
    run_id,
    sha256_of,
    training_key,
)

KEYS = {"data": data_key, "training": training_key, "run": run_id}


def lines(path: Path, count: int, word: str = "more") -> Path:
    rows = [{"prompt": f"{word} {n}", "target": str(n)} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data files, a model's folder and a suite of one's own."""
    monkeypatch.chdir(tmp_path)
    lines(Path("train.jsonl"), 30)
    lines(Path("validation.jsonl"), 5, "held")
    lines(Path("test.jsonl"), 5, "asked")
    for name, content in {
        "model/model.safetensors": "weights", "model/config.json": "{}", "model/tokenizer.json": "{}",
        "model/chat_template.jinja": "{{ messages }}", "suite/pairs.jsonl": "{}",
    }.items():  # fmt: skip
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content)
    return tmp_path


def planned(
    *overrides: str, method: str = "lora", splits: tuple[str, ...] = ("train", "validation", "test")
) -> RunConfig:
    files = [f"task.{split}_file={split}.jsonl" for split in splits]
    given = [
        "model=folder",
        "model.location=model",
        "task=jsonl",
        "suite=local",
        "suite.path=suite",
        *files,
        *overrides,
    ]
    (config,) = compose([f"method={method}", *given], multirun=False)
    return config


EDITS = [  # file, the keys that change for a tuned run, for the untouched base
    ("train.jsonl", "data training run", "data"),
    ("validation.jsonl", "data training run", "data"),
    ("test.jsonl", "data run", "data run"),
    ("model/model.safetensors", "training run", "training run"),
    ("model/config.json", "training run", "training run"),
    ("model/tokenizer.json", "data training run", "data training run"),
    ("model/chat_template.jinja", "data training run", "data training run"),
    ("suite/pairs.jsonl", "run", "run"),
]


@pytest.mark.parametrize(("file", "tuned", "base"), EDITS)
def test_an_edited_input_changes_the_keys_of_its_stage(place: Path, file: str, tuned: str, base: str) -> None:
    for method, changed in (("lora", tuned), ("base", base)):
        before = planned(method=method)
        content = Path(file).read_text()
        Path(file).write_text(content.replace("{", "{ ", 1) if content.startswith("{") else f"{content} ")
        after = planned(method=method)
        Path(file).write_text(content)
        assert " ".join(name for name, key in KEYS.items() if key(before) != key(after)) == changed
        assert run_id(planned(method=method)) == run_id(before)


def test_the_same_content_elsewhere_is_the_same_run(place: Path) -> None:
    shutil.copytree(place, place / "copy")
    (place / "copy" / "test.jsonl").rename(place / "copy" / "exam.jsonl")
    elsewhere = ("model.location=copy/model", f"suite.path={place}/suite", f"task.train_file={place}/train.jsonl",
                 "task.test_file=copy/exam.jsonl")  # fmt: skip
    for key in KEYS.values():
        assert key(planned(*elsewhere)) == key(planned())


def test_a_metric_of_ones_own_is_named_by_its_code(place: Path) -> None:
    Path("scores.py").write_text("def grade(prediction, reference, example):\n    return 1.0\n")
    here = planned("task.metrics=[scores.py:grade]")
    Path("copy").mkdir()
    shutil.copy("scores.py", "copy")
    assert run_id(planned("task.metrics=[copy/scores.py:grade]")) == run_id(here)
    Path("scores.py").write_text("def grade(prediction, reference, example):\n    return 0.0\n")
    edited = planned("task.metrics=[scores.py:grade]")
    assert (run_id(edited) == run_id(here), training_key(edited) == training_key(here)) == (False, True)


def test_a_split_that_is_cut_comes_from_the_training_file(place: Path) -> None:
    with_test, without = planned(), planned(splits=("train", "validation"))
    assert training_key(with_test) != training_key(without)  # fewer examples are left
    base = planned(method="base", splits=("train", "validation"))
    lines(Path("train.jsonl"), 31)
    assert run_id(planned(method="base", splits=("train", "validation"))) != run_id(base)


@pytest.mark.parametrize("reads", ["task.metrics=[label]", "task.prompt={prompt} One of {labels}.", "method.shots=1"])
def test_a_base_that_reads_training_examples_is_named_by_them(place: Path, reads: str) -> None:
    before = run_id(planned(reads, method="base"))
    lines(Path("train.jsonl"), 31)
    assert run_id(planned(reads, method="base")) != before


def test_a_stage_refuses_an_input_that_is_not_what_was_planned(place: Path) -> None:
    config = planned()
    assert [changed_inputs(config, stage) for stage in ("prepare", "train", "regression")] == [[], [], []]
    lines(Path("train.jsonl"), 31)
    assert changed_inputs(config, "train") == []  # it reads what is prepared
    (problem,) = changed_inputs(config, "prepare")
    assert "content.train_file" in problem
    assert "changed lately: train.jsonl" in problem
    Path("model/model.safetensors").write_text("w3ights")
    os.utime("model/model.safetensors", (1, 1))
    (problem,) = changed_inputs(config, "train")
    assert "changed lately: model/model.safetensors" in problem
    shutil.rmtree("suite")
    assert any("content.suite" in problem for problem in changed_inputs(config, "regression"))


def test_the_digest_of_a_large_file_is_kept_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_LARGE_BYTES", 3)
    file, kept = tmp_path / "weights", tmp_path / "cache"
    file.write_text("abcd")
    first = sha256_of(file, kept)
    (entry,) = (kept / "digests").iterdir()
    entry.write_text("known")
    assert sha256_of(file, kept) == "known"  # not read again
    file.write_text("abce")
    os.utime(file, ns=(0, file.stat().st_mtime_ns))
    assert sha256_of(file, kept) not in ("known", first)


# --- Folders of the cache ---


def _make(target: Path) -> None:
    target.mkdir()
    (target / "file").write_text("whole")


def _make_slowly(folder: Path, kept: Path) -> None:
    def make(target: Path) -> None:
        time.sleep(0.3)
        _make(target)
        (folder.parent / f"made-{os.getpid()}").touch()

    make_once(folder, make, kept)


def test_two_processes_make_a_folder_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_make_slowly, args=(tmp_path / "folder", tmp_path)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert is_whole(tmp_path / "folder", tmp_path)
    assert len(list(tmp_path.glob("made-*"))) == 1


@pytest.mark.parametrize("damage", ["flipped", "gone", "torn"])
def test_a_damaged_folder_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = make_once(tmp_path / "folder", _make, tmp_path)
    if damage == "flipped":
        (folder / "file").write_text("whule")
    elif damage == "gone":
        (folder / "file").unlink()
    else:
        (folder / identity.CHECKSUMS).write_text("{")
    assert not is_whole(folder, tmp_path)
    make_once(folder, _make, tmp_path)
    assert (folder / "file").read_text() == "whole"


def test_what_a_killed_process_left_is_removed_and_what_another_makes_is_not(tmp_path: Path) -> None:
    for name in (".left.part", ".held.part"):
        (tmp_path / name).mkdir()
    with locked(tmp_path / ".held.lock"):
        make_once(tmp_path / "folder", _make, tmp_path)
    assert not (tmp_path / ".left.part").exists()
    assert (tmp_path / ".held.part").exists()
