"""`python -m bench.plan` as a person calls it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.plan import main

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "peft", "bitsandbytes"}


def test_a_table_and_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model=llama-3.1-8b", "method=full,lora,qlora", "hardware=h100", "plan.memory_gib=24,80"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "| model" in shown
    assert shown.count("| llama-3.1-8b") == 3
    assert "24 GiB" in shown
    assert "llama-3.1-8b full, 24 GiB: does not fit" in shown
    assert "most of it optimizer" in shown
    assert "fits with" in shown
    assert "tokens/s" in shown


def test_json_holds_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=llama-3.2-1b", "method=lora", "hardware=h100", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert plan["total_bytes"] == sum(plan["terms"].values())
    assert plan["parameters_base"] == 1_235_814_400


def test_mistakes_are_told_and_nothing_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=llama-3.1-8", "plan.device=2"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "did you mean 'devices'?" in told.err
    assert "did you mean 'llama-3.1-8b'?" in told.err


def test_help_explains_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "plan.memory_gib=24,48,80" in capsys.readouterr().out
    assert main(["--jsn"]) == 2


def test_it_takes_about_a_second_and_no_torch() -> None:
    code = (
        "import sys; from bench.plan import main\n"
        "assert main(['model=llama-3.1-70b', 'method=full,lora,qlora', 'hardware=h100']) == 0\n"
        f"assert not {HEAVY!r} & set(sys.modules), set(sys.modules) & {HEAVY!r}"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 10  # about one alone; test machines are busy
