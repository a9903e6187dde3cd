"""What names, texts and files from somebody else can do here: nothing outside, nothing hidden, nothing unbounded."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import build_sweep

from bench.cli import main
from bench.compose import compose
from bench.config import RunConfig
from bench.identity import artifact_folder, names_of_arms, run_folder, run_id
from bench.mistakes import ConfigurationError
from bench.outcome import Status
from bench.record import Record, from_json
from bench.report import html
from bench.report.build import read_groups, write_report
from bench.stats import reading
from bench.stats.frames import load
from bench.sweep import child
from bench.sweep.console import Console
from bench.sweep.execute import claim, command, write_plan
from bench.sweep.fetching import prepare_all

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "a1B2c3D4" * 4
Change = Callable[[dict[str, Any]], object]


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder with its time of change and content."""
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Somebody's folder, which is the same after the test."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "thesis").write_text("precious")
    before = listing(folder)
    yield folder
    assert listing(folder) == before


@pytest.fixture
def received(tmp_path: Path) -> Path:
    """A sweep's folder as it came from somebody else."""
    return build_sweep(tmp_path / "received", failed=False)


def forge(sweep: Path, pattern: str, change: Change) -> Path:
    """Change the content of a run's record."""
    path = next(sweep.glob(pattern)) / "record.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path.parent


# --- Names ---


@pytest.mark.parametrize(
    "override",
    ["model.name=../../x", "sweep=..", "sweep=.", "task.name=/etc/x", "method.name=a/../../b",
     f"suite.name={'n' * 300}", f"sweep={'s' * 300}", 'model.name="a\x1b[2J"'],
)  # fmt: skip
def test_names_that_leave_the_folder_are_refused(override: str, tmp_path: Path, monkeypatch, outside, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["method=base", "model=tiny-random", override]) == 2
    assert override.partition("=")[0] + ":" in (said := capfd.readouterr().err)
    assert "Traceback" not in said
    assert "\x1b" not in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_long_name_makes_a_folder_that_there_can_be(smoke_config: RunConfig) -> None:
    name = "é" * 100
    config = replace(
        smoke_config, model=replace(smoke_config.model, name=name), task=replace(smoke_config.task, name=name)
    )
    run_folder(config).mkdir(parents=True)
    artifact_folder(config).mkdir(parents=True)
    assert len(run_id(config).encode()) <= 255


def test_arms_that_differ_in_long_texts_have_short_names_of_their_own(smoke_config: RunConfig) -> None:
    texts = ("a" * 5000, "a" * 5000 + "b")
    configs = [replace(smoke_config, task=replace(smoke_config.task, system=text)) for text in texts]
    names = names_of_arms((str(place), "lora", config) for place, config in enumerate(configs))
    assert len(set(names.values())) == 2
    assert max(map(len, names.values())) < 200


@pytest.mark.parametrize("field", ["run_id", "sweep", "model"])
def test_a_forged_record_names_no_folder_outside(received: Path, field: str, outside) -> None:
    run = forge(received, "lora-*-s0-*", lambda content: content.update({field: "../../outside/x"}))
    (problem,) = load(received).problems
    assert (problem.run, field in problem.reason) == (run.name, True)


# --- Links ---


def test_a_report_writes_through_no_link(received: Path, outside: Path, capfd) -> None:
    write_report(*read_groups(received))
    for name in ("report.html", "report.md", "plots/quality.svg", "tables/runs.csv", "tables/runs.parquet"):
        (received / name).unlink(missing_ok=True)
        (received / name).symlink_to(outside / "thesis")
    assert main(["report", str(received), "export=parquet"]) == 0
    assert not any(
        (received / name).is_symlink() for name in ("report.html", "plots/quality.svg", "tables/runs.parquet")
    )


@pytest.mark.parametrize("name", ["plots", "tables"])
def test_a_report_refuses_a_folder_that_is_a_link(name: str, received: Path, outside: Path, capfd) -> None:
    (received / name).symlink_to(outside)
    assert main(["report", str(received)]) == 1
    assert "nothing is written through links" in capfd.readouterr().err


def test_a_run_replaces_the_links_in_its_folder(smoke_config: RunConfig, outside: Path, monkeypatch) -> None:
    folder = run_folder(smoke_config)
    folder.mkdir(parents=True)
    for name in ("evaluate.log", "progress.tmp", "heartbeat", "steps.jsonl", "plan.json", "tensorboard"):
        (folder / name).symlink_to(outside if name == "tensorboard" else outside / "thesis")
    write_plan(smoke_config)
    assert [path.name for path in folder.iterdir() if path.is_symlink()] == []
    (folder / "evaluate.log").symlink_to(outside / "thesis")  # the log is a new file in any case
    monkeypatch.setattr(child, "command", lambda *arguments: ["echo", "at work"])
    child.run_stage(folder, "evaluate", 60)
    assert (folder / "evaluate.log").read_text() == "at work\n"


def test_a_lock_or_a_run_that_is_a_link_is_refused(smoke_config: RunConfig, outside: Path) -> None:
    folder = run_folder(smoke_config)
    folder.mkdir(parents=True)
    (folder / ".lock").symlink_to(outside / "thesis")
    with pytest.raises(OSError, match="nothing is written through links"), claim(folder):
        pass
    (folder / ".lock").unlink()
    folder.rmdir()
    folder.symlink_to(outside)
    with pytest.raises(ConfigurationError, match="nothing is written through links"):
        prepare_all([smoke_config], Console())


# --- Bounds ---


@pytest.mark.parametrize("lines", [b"0" * (64 << 20), b'{"task": "x"}\n' * (2 << 20)], ids=["one line", "many lines"])
def test_a_gzip_bomb_is_bounded_and_said(received: Path, lines: bytes, monkeypatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 2**20)
    (next(received.glob("lora-*-s0-*")) / "regression_items.jsonl.gz").write_bytes(gzip.compress(lines))
    (problem,) = load(received).problems
    assert problem.file == "regression_items.jsonl.gz"
    assert "read are at most 1 MiB unpacked and 4 MiB a line" in problem.reason


def test_texts_of_a_megabyte_are_shortened_and_counted(tmp_path: Path) -> None:
    received = build_sweep(tmp_path / "received")
    long = "m" * 2**20
    forge(received, "full_bf16-*", lambda content: content["failure"].update(message=long, log_tail=long))
    forge(received, "base-*", lambda content: content["provenance"].update(command=long, note=long))
    samples = next(received.glob("lora-*-s0-*")) / "samples.jsonl.gz"
    rows = [json.loads(line) | {"prompt": long} for line in gzip.decompress(samples.read_bytes()).splitlines()]
    samples.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    page = write_report(*read_groups(received))
    assert "more characters" in page.read_text()
    assert page.stat().st_size < html.LIMIT_BYTES
    assert (received / "report.md").stat().st_size < 200_000


def test_a_record_of_any_size_is_not_read(received: Path) -> None:
    run = next(received.glob("lora-*-s0-*"))
    with (run / "record.json").open("ab") as file:
        file.truncate(reading.RECORD_BYTES + 1)
    (problem,) = load(received).problems
    assert "larger than 16 MiB" in problem.reason


@pytest.mark.parametrize("word", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_loses_its_line_alone(received: Path, word: str) -> None:
    samples = next(received.glob("lora-*-s0-*")) / "samples.jsonl.gz"
    first, *others = gzip.decompress(samples.read_bytes()).decode().splitlines()
    spoilt = re.sub(r'"rougeL": [\d.e-]+', f'"rougeL": {word}', first)
    samples.write_bytes(gzip.compress("\n".join([spoilt, *others]).encode()))
    assert len(load(received).sample_rows[samples.parent.name]) == len(others)
    page = write_report(*read_groups(received)).read_text()
    assert "1 unreadable line(s)" in page
    scripts = re.findall(r'<script type="application/json">(.*?)</script>', page, re.S)
    assert len(scripts) > 3
    for script in scripts:
        json.loads(script, parse_constant=lambda constant: pytest.fail(constant))


def test_json_of_the_page_has_null_for_what_is_not_finite() -> None:
    assert json.loads(html._json({"x": [float("nan"), float("inf"), 1.5]})) == {"x": [None, None, 1.5]}


@pytest.mark.parametrize("memory", ["none", "no phase of training", "no peaks"])
def test_a_record_without_memory_phases_has_a_report(received: Path, memory: str) -> None:
    def change(content: dict[str, Any]) -> None:
        phases = content["train"]["memory"]
        kept = {"none": [], "no phase of training": [p for p in phases if p["phase"] != "train"]}
        content["train"]["memory"] = kept.get(memory, [p | {"peak_bytes": None} for p in phases])

    run = forge(received, "lora-*-s0-*", change)
    runs = load(received).runs.set_index("run_id")
    assert runs["peak_memory_bytes"].isna().to_dict()[run.name]
    assert write_report(*read_groups(received)).is_file()


# --- Texts ---


def test_formulas_are_texts_in_the_tables(received: Path) -> None:
    evil = "=1+cmd|'C'!A0"
    run = forge(
        received,
        "lora-*-s0-*",
        lambda content: (content.update(method=evil), content["config"]["method"].update(name=evil)),
    )
    write_report(*read_groups(received))
    with (received / "tables" / "runs.csv").open() as file:
        rows = {row["run_id"]: row for row in csv.DictReader(file)}
    assert rows[run.name]["method"] == f"'{evil}"
    assert not any(value.startswith(("=", "@", "+")) for row in rows.values() for value in row.values())


def test_escape_sequences_do_not_reach_the_terminal(received: Path, capfd) -> None:
    evil = "\x1b]0;owned\x07\x1b[2Jcolumn\u202e"
    record = from_json(Record, (next(received.glob("lora-*-s0-*")) / "record.json").read_bytes())
    out = Console()
    out.say(evil)
    out.problem(evil)
    out.table([evil], [[evil]], [])
    out.ended(replace(record, run_id=record.run_id, evaluate=replace(record.evaluate, scores={evil: 0.5})))
    with out.stage(evil) as watch:
        watch({"stage": "train", "phase": evil, "done": 0, "total": None})
    assert main([f"task.{evil}=1"]) == 2
    said = "".join(capfd.readouterr())
    assert said.count("]0;owned[2Jcolumn") >= 6
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said)


# --- Secrets ---


@pytest.mark.parametrize(
    ("variable", "value", "override"),
    [
        ("HF_TOKEN", "correct-horse-battery", "tracking.project=${oc.env:HF_TOKEN}"),
        ("MY_API_KEY", "correct-horse-battery", "task.system=Use ${oc.env:MY_API_KEY} here"),
        ("OTHER", TOKEN, "tracking.project=${oc.env:OTHER}"),
        ("OTHER", "x", f"tracking.project={TOKEN}"),
        ("OTHER", "x", "model.location=https://me:hunter22@example.org/model"),
    ],
)
def test_a_token_in_a_setting_is_refused_before_it_is_written(
    variable: str, value: str, override: str, tmp_path: Path, monkeypatch, capfd
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    assert main(["model=tiny-random", "method=base", override]) == 2
    assert "leave it in the environment" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_token_elsewhere_is_masked_where_it_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CLUSTER_PASSWORD", "correct-horse-battery")
    monkeypatch.setattr(
        sys, "argv", ["bench", f"hydra.launcher.setup=[export HF_TOKEN={TOKEN}]", "correct-horse-battery"]
    )
    assert command() == "python -m bench 'hydra.launcher.setup=[export HF_TOKEN=***]' ***"
    (tmp_path / "error.json").write_text(json.dumps({"message": f"401 for https://me:{TOKEN}@example.org"}))
    (tmp_path / "train.log").write_text(f"Authorization: {TOKEN}\ncorrect-horse-battery")
    failure = child._failure(tmp_path, "train", Status.ERROR, 1, 60)
    assert failure.message == "401 for https://***@example.org"
    assert failure.log_tail == "Authorization: ***\n***"


# --- Waiting, and words that cannot be written ---


def test_waiting_for_a_lock_says_so(tmp_path: Path, capfd) -> None:
    def second() -> None:
        with claim(tmp_path / "run"):
            pass

    with claim(tmp_path / "run"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
    thread.join()
    assert f"Waiting: another command is at work in {tmp_path / 'run'}." in capfd.readouterr().err


@pytest.mark.parametrize(
    "line",
    [["method=\udcff"], ["report", "r\udcff"], ["report", "a" * 300], ["task.prompt=" + "a" * 300], ["a" * 300],
     ["plan", "model=" + "a" * 300], ["export", "a" * 300, "check=true"], ["fetch", "a" * 300, "check=true"]],
    ids=str,
)  # fmt: skip
def test_words_that_are_no_names_are_mistakes(line: list[str], tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line) == 2
    assert "Configuration: " in capfd.readouterr().err


def test_a_locale_without_utf8_is_no_obstacle(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}
    line = [
        sys.executable,
        "-m",
        "bench",
        "plan",
        "model=llama-3.2-1b",
        "hardware=h100",
        "task.train_file=/données/é.jsonl",
    ]
    for more in ({}, {"PYTHONIOENCODING": "ascii"}):
        environment = ascii_only | more | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([*line, "train.epoch=3"], cwd=tmp_path, env=environment, capture_output=True, timeout=120)
        assert (done.returncode, b"Traceback" in done.stderr) == (2, False)
        assert b"train.epoch: no such setting" in done.stderr


def test_settings_of_a_sweep_are_composed_as_before(smoke) -> None:
    (config,) = compose(smoke("method=lora", "model.name=Qwen/Qwen3-0.6B"), multirun=False)
    assert config.model.name == "Qwen/Qwen3-0.6B"
    assert "/" not in run_id(config)
