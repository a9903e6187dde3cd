"""What a sweep says before it downloads anything: who fits, who is refused, and with which way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli import main
from bench.compose import compose
from bench.identity import data_folder
from bench.planner.forecast import Forecast, forecast, forecast_table, forecast_warnings, refusal
from bench.record import DataSummary, to_json


def found(tmp_path: Path, *overrides: str, memory_gib: float | None = 24.0) -> list[Forecast]:
    paths = [f"paths.{name}={tmp_path / name}" for name in ("results", "artifacts", "cache")]
    given = ["model=llama-3.1-8b", "task=gsm8k", "train=gpu", "hardware.device=cuda", *paths, *overrides]
    return [forecast(config, memory_gib, None) for config in compose(given, multirun=True)]


def test_what_does_not_fit_is_refused_and_what_hardly_fits_is_told(tmp_path: Path) -> None:
    full, lora, qlora = found(tmp_path, "method=full,lora,qlora")
    assert [f.plan and f.plan.verdict for f in (full, lora, qlora)] == ["does not fit", "tight", "fits"]
    (refused,) = refusal(full.config, full.plan)
    for words in ("150.7 GiB at 8 x 2,048 tokens", "hardware.devices=16 hardware.strategy=fsdp", "method=qlora",
                  "hardware.check_memory=false lets it try"):  # fmt: skip
        assert words in refused
    assert refusal(lora.config, lora.plan) == refusal(qlora.config, qlora.plan) == []
    (told,) = forecast_warnings([full, lora, qlora])
    assert "llama-3.1-8b lora, 24 GiB: tight" in told
    headers, rows = forecast_table([full, full, lora, qlora])
    assert dict(zip(headers, rows[0], strict=True)) == {
        "model": "llama-3.1-8b", "method": "full", "runs": "2", "download, GiB": "15.0",
        "memory, GiB (90%)": "150.7 (126.4-191.3)", "of": "24", "verdict (largest micro-batch)": "does not fit",
    }  # fmt: skip
    assert [row[-1] for row in rows] == ["does not fit", "tight (4)", "fits (8)"]


@pytest.mark.parametrize(
    "overrides",
    [("hardware.check_memory=false",), ("hardware.device=cpu",), ("train.micro_batch=auto", "method=qlora")],
)
def test_some_may_start_all_the_same(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    (run,) = found(tmp_path, "method=full", "train.max_length=8192", *overrides)
    assert run.plan is not None
    assert refusal(run.config, run.plan) == []
    assert bool(forecast_warnings([run])) == (run.plan.verdict != "fits")


def test_what_the_planner_does_not_know_is_not_judged(tmp_path: Path) -> None:
    offload = ["hardware.devices=2", "hardware.strategy=fsdp", "hardware.cpu_offload=true"]
    (run,) = found(tmp_path, "method=full", *offload)
    assert run.plan is None
    assert refusal(run.config, run.plan) == forecast_warnings([run]) == []
    (unknown,) = found(tmp_path, "method=full", memory_gib=None)
    assert refusal(unknown.config, unknown.plan) == []
    assert [row[-3:] for row in forecast_table([run, unknown])[1]] == [
        ["-", "-", "-"],
        ["150.7 (126.4-191.3)", "-", "-"],
    ]


def test_prepared_data_tell_the_longest_example(tmp_path: Path) -> None:
    (before,) = found(tmp_path, "method=lora")
    folder = data_folder(before.config)
    folder.mkdir(parents=True)
    summary = DataSummary("f", 8, 4, 4, {}, tokens_per_example_mean=200.0, tokens_per_example_max=512, source="here")
    (folder / "summary.json").write_text(to_json(summary))
    (after,) = found(tmp_path, "method=lora")
    assert before.plan is not None
    assert after.plan is not None
    assert (before.plan.verdict, after.plan.verdict, after.plan.max_length) == ("tight", "fits", 512)


def test_a_sweep_stops_before_it_writes(tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = "-m method=full,lora,qlora model=llama-3.1-8b task=gsm8k train=gpu hardware=rtx4090 train.max_length=8192"
    assert main(line.split()) == 2
    said = capfd.readouterr()
    assert said.err.count("does not fit, ") == 3
    assert said.out.count("does not fit") == 3
    assert not [*tmp_path.rglob("*.json")]


def test_refusals_come_with_all_other_mistakes(tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    monkeypatch.chdir(tmp_path)
    line = "-m method=full model=llama-3.1-8b task=gsm8k train=gpu hardware=rtx4090 paths.artifacts=file"
    assert main(line.split()) == 2
    said = capfd.readouterr().err
    assert "paths.artifacts" in said
    assert "does not fit, " in said
