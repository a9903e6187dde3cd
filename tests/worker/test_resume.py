"""A run that is stopped and started again ends as one that was never stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import artifact_folder
from bench.record import TrainResult
from bench.worker import prepare as prepare_stage
from bench.worker import resume
from bench.worker import train as train_stage
from bench.worker.main import Context, Progress

STEPS, EVERY = 7, 3
BUDGET = (f"train.max_steps={STEPS}", "train.epochs=2", "train.heldout_points=3", "hardware.compute_dtype=float32")


class StoppedError(Exception):
    """Stands for a kill."""


def configured(smoke, *overrides: str) -> RunConfig:
    (config,) = compose(smoke(*BUDGET, *overrides), multirun=False)
    return config


def trained(config: RunConfig, folder: Path) -> tuple[TrainResult, list[dict]]:
    folder.mkdir(exist_ok=True)
    result = train_stage.run(Context(folder, config, Progress(folder, "train")))
    return result, [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def stopped_in(step: int, config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until the step's examples are asked for."""
    folder.mkdir(exist_ok=True)
    calls = iter(range(1, step + 1))

    def step_starts(self) -> None:
        if next(calls) == step:
            raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr("bench.worker.observe.Observer.step_starts", step_starts)
        context = Context(folder, config, Progress(folder, "train"))
        prepare_stage.run(context)
        with pytest.raises(StoppedError):
            train_stage.run(context)


def learned(result: TrainResult) -> list[float | None]:
    return [point.loss for point in result.heldout]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_stopped_run_ends_as_one_that_was_not(smoke, tmp_path: Path, monkeypatch, method: str) -> None:
    dropout = ["method.adapter.dropout=0.1"] if method == "lora" else []  # random numbers go on, too
    config = configured(smoke, f"method={method}", f"train.checkpoint_every_steps={EVERY}", *dropout)
    stopped_in(6, config, tmp_path / "run", monkeypatch)
    kept = artifact_folder(config) / resume.FOLDER
    assert [path.name for path in kept.iterdir()] == ["checkpoint-3"]
    resumed, steps = trained(config, tmp_path / "run")
    weights = weights_of(config)
    whole, expected = trained(configured(smoke, f"method={method}", *dropout), tmp_path / "whole")
    assert (resumed.resumed_at_steps, whole.resumed_at_steps) == ([3], [])
    for name in ("step", "loss", "gradient_norm", "learning_rate", "tokens", "supervised_tokens", "positions"):
        assert [s[name] for s in steps] == [s[name] for s in expected], name
    assert learned(resumed) == learned(whole)
    for name in ("data_stream_sha256", "steps", "examples", "tokens", "supervised_tokens", "positions"):
        assert getattr(resumed, name) == getattr(whole, name), name
    assert all((weights[name] == tensor).all() for name, tensor in weights_of(config).items())
    assert not kept.exists()  # the weights are there, so nothing is left to go on from


def weights_of(config: RunConfig) -> dict:
    (file,) = artifact_folder(config).glob("*.safetensors")
    return load_file(file)


def test_speed_is_that_of_the_last_process(smoke, tmp_path: Path, monkeypatch) -> None:
    config = configured(smoke, "method=lora", f"train.checkpoint_every_steps={EVERY}")
    stopped_in(6, config, tmp_path, monkeypatch)
    resumed, steps = trained(config, tmp_path)
    assert [s["timed"] for s in steps] == [False] * 4 + [True] * 3  # one warm-up step after the resumption
    assert resumed.timed_steps == 3
    timed = [s for s in steps if s["timed"]]
    rate = sum(s["tokens"] for s in timed) / sum(s["seconds"] for s in timed)
    assert resumed.train_tokens_per_second == pytest.approx(rate)
    assert resumed.train_seconds == pytest.approx(sum(s["seconds"] for s in steps))
    assert resumed.spans_seconds["train_steps"] == pytest.approx(sum(s["seconds"] for s in steps[3:]))
    assert resumed.spans_seconds["checkpoint"] > 0  # of step 6
    assert {"train", "checkpoint"} <= {phase.phase for phase in resumed.memory}


def test_a_checkpoint_that_cannot_be_used_is_named_and_passed_over(smoke, tmp_path: Path, monkeypatch, capsys) -> None:
    config = configured(smoke, "method=lora", f"train.checkpoint_every_steps={EVERY}")
    stopped_in(6, config, tmp_path / "run", monkeypatch)
    kept = artifact_folder(config) / resume.FOLDER
    shutil.copytree(kept / "checkpoint-3", kept / "checkpoint-5")
    optimizer = kept / "checkpoint-5" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:100])
    shutil.copytree(kept / "checkpoint-3", kept / "checkpoint-6")
    (kept / "checkpoint-6" / "seen.json").unlink()
    resumed, _ = trained(config, tmp_path / "run")
    assert resumed.resumed_at_steps == [3]
    said = capsys.readouterr().out
    assert "checkpoint-6 is not used: it was not written to its end" in said
    assert "checkpoint-5 is not used: torn: optimizer.pt" in said


@pytest.mark.parametrize(
    ("change", "why"), [("device", "written with threads"), ("base", "written with base"), ("data", "no longer those")]
)
def test_what_is_not_the_same_run_starts_anew(smoke, tmp_path: Path, monkeypatch, capsys, change, why) -> None:
    config = configured(smoke, "method=lora", f"train.checkpoint_every_steps={EVERY}")
    stopped_in(5, config, tmp_path, monkeypatch)
    if change in ("device", "base"):
        real, other = resume.made_by, {"device": {"threads": "512"}, "base": {"base": "another commit"}}[change]
        monkeypatch.setattr(resume, "made_by", lambda *given: real(*given) | other)
    else:
        real_consume = resume.consume
        monkeypatch.setattr(resume, "consume", lambda stream, trainer, steps: real_consume(stream, trainer, steps - 1))
    result, steps = trained(config, tmp_path)
    assert why in capsys.readouterr().out
    assert result.resumed_at_steps == []
    assert [s["step"] for s in steps] == list(range(1, STEPS + 1))
