"""`python -m bench ... --allow-different=...`: the exception reaches the report, mistakes exit with 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import make_items, make_record, make_samples, write_run

from bench.cli import main
from bench.compose import compose
from bench.fairness import REQUIREMENTS
from bench.identity import comparison_key, run_id, sweep_folder


@pytest.fixture
def finished(smoke) -> tuple[list[str], Path]:
    """(overrides, folder) of a sweep that is finished: full with one thread, LoRA with two."""
    runs = {"full": "hardware.threads=1", "lora": "hardware.threads=2"}
    for method, threads in runs.items():
        (config,) = compose(smoke(f"method={method}", threads, "sweep=mixed"), multirun=False)
        record = make_record(method, 0)
        environment = replace(record.train.environment, threads=config.hardware.threads)
        record = replace(
            record,
            run_id=run_id(config),
            comparison_key=comparison_key(config),
            config=config,
            train=replace(record.train, environment=environment),
        )
        write_run(sweep_folder(config), record, [], make_samples(method, 0), make_items(method, 0))
    return smoke("sweep=mixed"), sweep_folder(config)


def report(folder: Path) -> str:
    return (folder / "report.md").read_text()


def test_the_exception_reaches_the_report(finished: tuple[list[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    overrides, folder = finished
    # Two commands on one folder: each finds its run finished and reports both.
    assert main([*overrides, "method=lora", "hardware.threads=2"]) == 0
    assert "Compared in spite" not in report(folder)
    assert "| threads |" in report(folder)
    assert main([*overrides, "method=lora", "hardware.threads=2", "--allow-different=threads"]) == 0
    assert "by `--allow-different=threads`" in report(folder)
    assert "nothing to do" in capfd.readouterr().out


@pytest.mark.parametrize("flags", [["--allow-different=devise"], ["--allow-different"], ["--allow-different="]])
def test_mistakes_list_what_is_allowed(flags: list[str], smoke, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", *smoke("method=full,lora"), *flags]) == 2
    errors = capfd.readouterr().err
    assert "nothing was run" in errors
    assert all(name in errors for name in REQUIREMENTS)


def test_it_can_be_given_twice(finished: tuple[list[str], Path]) -> None:
    overrides, folder = finished
    flags = ["--allow-different=threads", "--allow-different=device"]
    assert main([*overrides, "method=full", "hardware.threads=1", *flags]) == 0
    assert "by `--allow-different=device,threads`" in report(folder)
