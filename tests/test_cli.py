"""The command line as a person gives it: commands, help, mistakes; sweeps by it are in tests/sweep."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.arguments import parse
from bench.cli import COMMANDS, TAKES, main
from bench.mistakes import ConfigurationError

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "pandas", "scipy", "altair"}


def test_a_command_line_is_taken_apart(tmp_path: Path) -> None:
    given = parse(["report", "results/a", "memory_gib=24", "results/b"], TAKES)
    assert (given.command, given.paths) == ("report", [Path("results/a"), Path("results/b")])
    assert given.settings == ["memory_gib=24"]
    assert parse(["-m", "method=base,lora"], TAKES).command == "sweep"
    assert parse(["-h"], TAKES).flags == {"--help"}
    odd = tmp_path / "rank=8"
    odd.mkdir()
    assert parse(["export", str(odd)], TAKES).paths == [odd]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("reprot results/default", "did you mean 'report'?"),
        ("method=lora results/default", "sweep: takes no path; given results/default"),
        ("plan method=lora --jsn", "did you mean '--json'?"),
        ("report", "report: takes the folders of sweeps, such as results/default; none was given"),
        ("export a b", "export: takes one folder"),
        ("-x", "-x: no such flag"),
    ],
)
def test_mistakes_name_what_is_allowed(line: str, words: str, capfd) -> None:
    assert main(line.split()) == 2
    assert words in capfd.readouterr().err
    with pytest.raises(ConfigurationError):
        parse(line.split(), TAKES)


def test_all_mistakes_of_a_report_are_told_at_once(capfd) -> None:
    line = "report results/nowhere memry_gib=24 mergeable=maybe allow_different=devise target_loss=-1"
    assert main(line.split()) == 2
    errors = capfd.readouterr().err
    assert "5 problems" in errors
    for words in (
        "results/nowhere",
        "did you mean 'memory_gib'?",
        "yes or no",
        "did you mean 'device'?",
        "target_loss",
    ):
        assert words in errors


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "sweep"])
def test_every_command_explains_itself(command: str, capfd) -> None:
    assert main([command, "--help"]) == 0
    assert f"python -m bench {command} " in capfd.readouterr().out


@pytest.mark.parametrize("line", ["--help", "plan model=llama-3.1-70b method=full,lora,qlora hardware=h100"])
def test_it_takes_about_a_second_and_nothing_heavy(line: str) -> None:
    code = (
        f"import sys; from bench.cli import main\nassert main({line.split()!r}) == 0\n"
        f"assert not {HEAVY!r} & set(sys.modules), set(sys.modules) & {HEAVY!r}"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 10  # about one alone; test machines are busy
    if line == "--help":
        for words in ("Groups", "docstrings, dolly", "Settings", "learning_rate: 0.0005", "fetch   Fetch model"):
            assert words in done.stdout


def test_a_plan_is_a_table_and_what_to_change(capfd) -> None:
    line = "plan model=llama-3.1-8b method=full,lora,qlora hardware=h100 plan.memory_gib=24,80"
    assert main(line.split()) == 0
    shown = capfd.readouterr().out
    assert sum(row.startswith("llama-3.1-8b   ") for row in shown.splitlines()) == 3
    for words in ("model", "24 GiB", "tokens/s", "llama-3.1-8b full, 24 GiB: does not fit", "most of it optimizer"):
        assert words in shown


def test_a_plan_for_programs_holds_bytes(capfd) -> None:
    assert main(["plan", "model=llama-3.2-1b", "method=lora", "hardware=h100", "--json"]) == 0
    (plan,) = json.loads(capfd.readouterr().out)
    assert plan["peak_memory_bytes"] == sum(plan["terms"].values())
    assert plan["parameters_base"] == 1_235_814_400


def test_mistakes_in_a_plan_are_told_and_nothing_is_planned(capfd) -> None:
    assert main(["plan", "model=llama-3.1-8", "plan.paded=false"]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert "did you mean 'padded'?" in said.err
    assert "did you mean 'llama-3.1-8b'?" in said.err
