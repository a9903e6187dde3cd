"""Commands of the pages, given as they stand but in small: on a tiny random model, with the stages in this process."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from in_process import in_process

from bench import cli
from bench.compose import CONFIG_FOLDER, compose
from bench.outcome import Status
from bench.stats.frames import load
from bench.sweep import execute, fetching
from bench.worker import models
from bench.worker.instruments import memory, tokens
from bench.worker.sources import docstrings

ROOT = Path(__file__).parents[1]
DATA = (
    "task=jsonl task.train_file=train.jsonl task.test_file=test.jsonl task.prompt={question} task.target={answer} "
    "task.metrics=[numeric]"
)
BUDGET = (
    "train=smoke suite=none task.validation_examples=4 task.test_examples=4 task.max_new_tokens=4 hardware.threads=1"
)
GRID = f"model=tiny-random {BUDGET} {DATA}"  # the command itself says how many examples
TINY = f"{GRID} task.train_examples=16"
FEW = f"{TINY} suite=quick suite.items_per_task=1 evaluation.examples=2"
SMOKE = f"{DATA} task.max_new_tokens=4 hardware.threads=1"
SERVED = "serve.prompt_tokens=[8] serve.batch_sizes=[1] serve.new_tokens=2 serve.repetitions=1 serve.adapters=[1,2]"
OWN = (
    'make sweep ARGS="task=jsonl task.train_file=train.jsonl task.test_file=test.jsonl task.prompt={question} '
    'task.target={answer} task.metrics=[numeric] sweep=mine"'
)
FOLDER = 'make sweep ARGS="model=folder model.location=path/to/model model.max_context=4096 model.name=mine"'

# Each list is given in a folder of its own: (command, settings in the place of its own of the same name, runs).
SESSIONS: dict[str, list[tuple[str, str, int]]] = {
    "sweep": [
        ("python -m bench -m method=base,full,lora,qlora seed=0,1,2", f"{TINY} seed=0", 4),
        ("make sweep", TINY, 4),
        ("python -m bench report results/default", "", 4),
        ("python -m bench report results/default memory_gib=24 time_hours=2", "", 4),
        ("python -m bench report results/default export=latex,png", "", 4),
        ("python -m bench -m method=base,full,lora,qlora serve=full", f"{TINY} {SERVED} method=base,lora", 4),
    ],
    "tune": [
        ("make tune", f"{TINY} tune.max_points=2", 0),
        ('make sweep ARGS="rates=results/tune/default/rates.yaml"', f"{TINY} method=full,lora", 2),
    ],
    "single": [
        ("python -m bench method=lora", TINY, 1),
        ("python -m bench method=full_adam8bit", TINY, 2),
        ("python -m bench -m method=lora method.adapter.rank=8,16,64 sweep=rank", TINY, 3),
    ],
    "own data": [(OWN, f"model=tiny-random {BUDGET} task.train_examples=16 method=lora", 1)],
    "own model": [(FOLDER, f"{BUDGET} {DATA} task.train_examples=16 method=lora model.max_context=2048", 1)],
    "rank": [("python -m bench -m experiment=rank", TINY, 8)],
    "targets": [("python -m bench -m experiment=targets", TINY, 2)],
    "dropout": [("python -m bench -m experiment=dropout", TINY, 3)],
    "data_size": [("python -m bench -m experiment=data_size", GRID, 9)],
    "qlora_variants": [("python -m bench -m experiment=qlora_variants", TINY, 4)],
    "lora_variants": [("python -m bench -m experiment=lora_variants", TINY, 5)],
    "full_variants": [("python -m bench -m experiment=full_variants", TINY, 3)],
    "domains": [
        ("python -m bench -m experiment=domains", f"model=tiny-random {BUDGET} task.train_examples=16 method=base", 2)
    ],
    "dither": [("python -m bench -m experiment=dither", f"{TINY} seed=0 train.max_steps=2 train.heldout_points=1", 2)],
    "controls": [("python -m bench -m experiment=controls", f"{TINY} suite=quick suite.items_per_task=1", 3)],
    "equal_memory": [("python -m bench -m experiment=equal_memory", f"{TINY} train.batch_size=2", 3)],
    "frontier": [
        ("python -m bench -m experiment=frontier", f"{TINY} method=base,lora seed=0 evaluation.examples=2", 2)
    ],
    "paper_no_regret": [("python -m bench -m experiment=paper_no_regret", f"{TINY} method.learning_rate=1e-4,1e-3", 4)],
    "paper_no_regret_rank": [
        ("python -m bench -m experiment=paper_no_regret_rank", f"{TINY} method.learning_rate=1e-3", 2)
    ],
    "paper_no_regret_attention": [
        ("python -m bench -m experiment=paper_no_regret_attention", f"{TINY} method.learning_rate=1e-3", 2)
    ],
    "paper_no_regret_batch": [
        ("python -m bench -m experiment=paper_no_regret_batch", f"{TINY} method.learning_rate=1e-3", 4)
    ],
    "paper_limits_decay": [("python -m bench -m experiment=paper_limits_decay", f"{FEW} method=lora seed=0", 2)],
    "paper_limits_stopping": [("python -m bench -m experiment=paper_limits_stopping", f"{FEW} method=lora seed=0", 2)],
    "paper_limits_mixing": [("python -m bench -m experiment=paper_limits_mixing", f"{FEW} method=lora seed=0", 3)],
    "paper_kl_forgetting": [
        ("python -m bench -m experiment=paper_kl_forgetting", f"{FEW} method=lora method.learning_rate=1e-3,3e-3", 2)
    ],
    "paper_learns_less": [("python -m bench -m experiment=paper_learns_less", f"{TINY} seed=0", 3)],
    "paper_illusion": [("python -m bench -m experiment=paper_illusion", f"{TINY} seed=0", 3)],
    "paper_variants": [("python -m bench -m experiment=paper_variants", f"{TINY} method.learning_rate=1e-3", 5)],
    "paper_nf4": [("python -m bench -m experiment=paper_nf4", f"{TINY} seed=0", 2)],
    "smoke": [("python -m bench -m experiment=smoke method=full,lora,qlora", SMOKE, 3)],
}


def test_every_command_stands_on_a_page() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    text = " ".join(re.sub(r"\\\n\s*", "", page.read_text()) for page in pages)
    assert [command for session in SESSIONS.values() for command, _, _ in session if command not in text] == []


def test_every_experiment_is_given() -> None:
    assert {path.stem for path in (CONFIG_FOLDER / "experiment").glob("*.yaml")} <= SESSIONS.keys()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are given, with somebody's data; what measures the machine is cut short."""
    sums = [(a, b) for a in range(60) for b in range(40)]
    rows = [json.dumps({"question": f"{a} + {b} = ?", "answer": str(a + b)}) + "\n" for a, b in sums]
    (tmp_path / "train.jsonl").write_text("".join(rows[:2300]))
    (tmp_path / "test.jsonl").write_text("".join(rows[2300:]))
    for module in (execute, fetching):
        monkeypatch.setattr(module, "run_stage", in_process)
    peak = functools.partial(tokens.matmul_peak_flops_per_second, seconds=0.01)
    monkeypatch.setattr(tokens, "matmul_peak_flops_per_second", peak)
    monkeypatch.setattr(memory, "_collect", lambda: None)
    monkeypatch.setattr(docstrings, "DOCSTRING_PACKAGES", {"networkx": "networkx"})
    monkeypatch.setattr(docstrings, "FILE_BYTES_MAXIMUM", 4_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments_of(command: str, small: str) -> list[str]:
    """The words after `python -m bench`, with smaller settings in the place of those of the same name."""
    words = shlex.split(command)
    if words[0] == "make":
        asked = ["make", "--dry-run", "--old-file=.venv/ready", *words[1:]]
        clean = {"PATH": os.environ["PATH"]}  # `make test` hands down its flags and variables
        done = subprocess.run(asked, cwd=ROOT, env=clean, capture_output=True, text=True, check=True)
        words = shlex.split(done.stdout)
    instead = shlex.split(small)
    names = {word.partition("=")[0] for word in instead}
    return [word for word in words[3:] if word.partition("=")[0] not in names] + instead


@pytest.mark.slow
@pytest.mark.parametrize("session", SESSIONS)
def test_a_command_does_what_its_page_says(session: str, folder: Path) -> None:
    if session == "own model":
        (tiny,) = compose(["model=tiny-random", f"paths.cache={folder / 'cache'}"], multirun=False)
        shutil.copytree(models.locate(tiny.model, folder / "cache"), folder / "path" / "to" / "model")
    for command, small, runs in SESSIONS[session]:
        assert cli.main(arguments_of(command, small)) == 0, command
        if runs:
            sweep = max(folder.glob("results/*/report.html"), key=lambda report: report.stat().st_mtime_ns).parent
            assert [record.status for record in load(sweep).records] == [Status.OK] * runs, command
        else:
            assert (folder / "results/tune/default/rates.yaml").is_file()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("python -m bench plan model=llama-3.1-8b method=full,lora,qlora train=gpu hardware=h100", "does not fit"),
        (
            "python -m bench plan model=llama-3.2-1b,llama-3.2-3b,llama-3.1-8b,llama-3.1-70b method=full,lora,qlora "
            "train=gpu hardware=h100 plan.memory_gib=24,48,80",
            "1270.8",
        ),
    ],
)
def test_the_planner_says_what_its_page_shows(command: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments_of(command, "")) == 0
    assert says in capfd.readouterr().out
