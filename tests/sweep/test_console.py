"""What a person sees while runs are at work: the sweep, the phase; plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as RichConsole

from bench.sweep.console import Agenda, Console, details, live

TRAINING = {"stage": "train", "phase": "train", "done": 12, "total": 20, "loss": 2.9131, "tokens_per_second": 583.2,
            "peak_bytes": 2.71 * 2**30}  # fmt: skip
RUNS = {"base-s0": "base", "full-s0": "full", "lora-s0": "lora", "lora-s1": "lora", "full-s1": "full", "x": "full"}


def test_the_numbers_of_a_phase() -> None:
    assert details(TRAINING) == "loss 2.913, 583 tokens/s, peak 2.71 GiB"
    assert details({"loss": None, "peak_bytes": None}) == ""  # unknown is not told


def test_the_time_left_waits_for_two_methods_and_takes_the_slowest_for_one_not_seen() -> None:
    agenda = Agenda(RUNS)
    agenda.begins("base-s0")
    agenda.ended("base-s0", 60.0)
    agenda.begins("full-s0")
    assert agenda.left_seconds("full-s0", 5.0) is None  # an untrained run says nothing of training
    agenda.ended("full-s0", 200.0)
    agenda.begins("lora-s0")
    assert agenda.left_seconds("lora-s0", 50.0) == 150.0 + 3 * 200.0
    agenda.ended("lora-s0", 100.0)
    agenda.begins("lora-s1")
    assert agenda.left_seconds("lora-s1", 130.0) == 2 * 200.0  # late already: the others remain
    assert (agenda.done, agenda.total) == (3, 6)


def test_what_was_expected_is_the_time_left_until_runs_tell() -> None:
    agenda = Agenda({"base": "base", "lora": "lora", "full": "full"})
    agenda.expected_seconds = {"base": 10.0, "lora": 100.0, "full": None}
    agenda.begins("base")
    assert agenda.left_seconds("base", 0.0) is None  # of one method nothing is known
    agenda.expected_seconds["full"] = 200.0
    assert agenda.left_seconds("base", 4.0) == 6.0 + 100.0 + 200.0
    agenda.ended("base", 12.0)
    agenda.begins("lora")
    agenda.ended("lora", 150.0)
    agenda.begins("full")
    assert agenda.left_seconds("full", 20.0) == 180.0


def test_one_method_alone_tells_its_own_time() -> None:
    agenda = Agenda({"lora-s0": "lora", "lora-s1": "lora"})
    agenda.begins("lora-s0")
    agenda.ended("lora-s0", 100.0)
    agenda.begins("lora-s1")
    assert agenda.left_seconds("lora-s1", 30.0) == 70.0


def test_a_terminal_shows_the_sweep_and_the_phase() -> None:
    out = RichConsole(file=io.StringIO(), force_terminal=True, width=150, highlight=False)
    agenda = Agenda(RUNS)
    for run, seconds in (("base-s0", 60.0), ("full-s0", 240.0)):
        agenda.begins(run)
        agenda.ended(run, seconds)
    agenda.begins("lora-s0")
    with live(out, "lora-s0", agenda) as watch:
        watch({"stage": "train", "phase": "load", "done": 0, "total": None})
        watch(TRAINING)
    shown = out.file.getvalue()  # type: ignore[attr-defined]
    assert "2 of 6 runs ended, 0 min so far, about 16 min left" in shown
    assert "lora-s0  train: train" in shown
    assert "12/20" in shown
    assert "loss 2.913, 583 tokens/s, peak 2.71 GiB" in shown


def test_elsewhere_a_phase_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().stage("lora-s0") as watch:
        watch(TRAINING)
        watch(TRAINING | {"done": 13})  # the same phase, at once: not told again
    assert capsys.readouterr().out == "  lora-s0  train: train 12/20  loss 2.913, 583 tokens/s, peak 2.71 GiB\n"
