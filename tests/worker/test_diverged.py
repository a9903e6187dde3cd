"""Training that diverges is found within a step, weights that are not finite before the first; nothing is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import artifact_folder
from bench.outcome import Status
from bench.sweep.execute import execute
from bench.worker import evaluate, models
from bench.worker import prepare as prepare_stage
from bench.worker import train as train_stage
from bench.worker.loss import SupervisedHead
from bench.worker.main import Context, DivergedError, Progress
from bench.worker.observe import weight_norm

BASIS = ("method=lora", "method.learning_rate=1.0", "train.warmup_fraction=0", "train.batch_size=4",
         "train.max_steps=4", "train.epochs=4", "train.heldout_points=1")  # fmt: skip
EXPLODES = (*BASIS, f"method.adapter.alpha={10**38}")  # the gradient of the first step overflows


def configured(smoke, *overrides: str) -> RunConfig:
    return compose(smoke(*overrides), multirun=False)[0]


def prepared(config: RunConfig, folder: Path) -> Context:
    context = Context(folder, config, Progress(folder, "train"))
    prepare_stage.run(context)
    return context


def steps_until_it_ends(context: Context, words: str, step: int) -> list[dict]:
    with pytest.raises(DivergedError, match=f"^not finite: {words}") as caught:
        train_stage.run(context)
    assert caught.value.step == step
    assert not (artifact_folder(context.config) / "complete").exists()
    return [json.loads(line) for line in (context.folder / "steps.jsonl").read_text().splitlines()]


def test_a_gradient_that_is_not_finite_ends_training_at_its_step(smoke, tmp_path: Path) -> None:
    context = prepared(configured(smoke, *EXPLODES), tmp_path)
    (step,) = steps_until_it_ends(context, "the gradient norm at step 1", 1)
    assert (step["gradient_norm"], step["loss"] is None) == (None, False)


def test_a_loss_that_is_not_finite_ends_training_at_its_step(smoke, tmp_path: Path, monkeypatch) -> None:
    context = prepared(configured(smoke, *BASIS, "train.micro_batch=4"), tmp_path)
    losses, calls = SupervisedHead.token_losses, []

    def broken_at_the_second_step(head, model, batch):
        found, rows = losses(head, model, batch)
        calls.append(model.training)
        return found * (float("nan") if sum(calls) == 2 else 1), rows

    monkeypatch.setattr(SupervisedHead, "token_losses", broken_at_the_second_step)
    steps = steps_until_it_ends(context, "the loss", 2)
    assert [step["loss"] is None for step in steps] == [False, True]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_weight_among_many_is_found(value: float) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    squares = sum(float(p.detach().square().sum()) for p in model.parameters())
    assert weight_norm(model) == pytest.approx(squares**0.5)
    assert models.not_finite(model) == []
    with torch.no_grad():
        model[1].weight[3, 3] = value
    assert not weight_norm(model) < float("inf")
    assert models.not_finite(model) == ["1.weight"]


def test_weights_are_looked_at_before_the_first_step(smoke, tmp_path: Path, monkeypatch) -> None:
    context = prepared(configured(smoke, "method=full"), tmp_path)
    monkeypatch.setattr(train_stage.models, "not_finite", lambda model: ["model.norm.weight"])
    with pytest.raises(DivergedError, match=r"model.norm.weight is not finite before the first step"):
        train_stage.run(context)
    assert not (tmp_path / "steps.jsonl").exists()


def test_nothing_is_evaluated_of_weights_that_are_not_finite(smoke, tmp_path: Path) -> None:
    context = prepared(configured(smoke, "method=full", "train.max_steps=1"), tmp_path)
    train_stage.run(context)
    file = context.weights / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(DivergedError, match=r"nothing is evaluated: model.norm.weight is not finite"):
        evaluate.run(context)
    assert not (tmp_path / "samples.jsonl.gz").exists()


@pytest.mark.slow
def test_the_record_says_so(smoke, tmp_path: Path) -> None:
    config = configured(smoke, *EXPLODES)
    prepared(config, tmp_path)  # here, so that one child is enough
    record = execute(config)
    assert record.status is Status.DIVERGED
    assert record.failure is not None
    assert (record.failure.stage, record.failure.step) == ("train", 1)
    assert "method.learning_rate" in record.failure.next_step
    assert record.evaluate is None
