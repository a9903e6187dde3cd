"""Train, save the weights, and say what it took."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.config import RunConfig
from bench.identity import data_folder, flush_to_disk
from bench.record import Fit, TrainResult, from_json
from bench.worker import (
    budget,
    checkpoints,
    data,
    device,
    heldout,
    methods,
    overall,
    prepare,
    sharding,
    summary,
    train,
)
from bench.worker.instruments import flops
from bench.worker.instruments.energy import open_energy
from bench.worker.observer import Observer
from bench.worker.resume import Keeper
from bench.worker.shares import share_of_rows
from bench.worker.stages.context import Context, load_trainable


def run(context: Context) -> TrainResult:
    """One SFT run, from the base to saved weights."""
    config, clock, team = fitted(context), context.clock, context.team
    rows = prepare.load_prepared(data_folder(config))
    order = order_of(config, rows)
    steps = data.steps_of(order, config.train.batch_size)
    resolved = device.resolve(config, steps, team.size)
    team.join(resolved.type, config.hardware.stage_timeout_seconds)
    budget.enforce(config.hardware, resolved.type)
    with clock.span("calibrate"):
        peak = flops.matmul_peak_flops_per_second(resolved.type, resolved.compute_dtype, resolved.synchronize)
    memory = context.measure_on(resolved)
    model, head, tokenizer = load_trainable(context, resolved, memory)
    parameters, costs = summary.parameters(config, model), flops.linear_costs(model)  # before anything is cut
    validation = share_of_rows(list(rows.validation), team)

    def measure_heldout() -> float:
        with heldout.inference(model, resolved):
            size, pad_id = config.train.fitted_micro_batch, tokenizer.pad_token_id
            losses = heldout.example_losses(model, head, validation, batch_size=size, pad_id=pad_id, device=resolved)
        return heldout.mean_loss([loss for part in team.all(losses) for loss in part])

    energy = open_energy(resolved.type)
    observer = Observer(
        folder=context.folder,
        config=config,
        total_steps=steps,
        clock=clock,
        memory=memory,
        energy=energy,
        progress=context.progress,
        measure_heldout=measure_heldout,
        team=team,
    )
    kept = context.weights / checkpoints.FOLDER
    keeper = Keeper(kept, config, resolved, observer, memory, energy) if config.train.checkpoint_every_steps else None
    arguments = train.training_arguments(config, resolved, steps, kept, team)
    trainer = train.SftTrainer(
        model=model,
        args=arguments,
        optimizers=(methods.make_optimizer(model, config.method, arguments), None),
        train_dataset=rows.train,
        callbacks=[observer, keeper] if keeper else [observer],
        head=head,
        rows=[rows.train[i] for i in order],
        pad_id=tokenizer.pad_token_id,
        packing=config.train.packing,
        observer=observer,
        autocast=resolved.autocast if config.hardware.strategy == "fsdp" else nullcontext,
        team=team,
        keeper=keeper,
    )
    context.load.start()
    keeper.train(trainer) if keeper else trainer.train()
    other_load = context.load.read()
    energy.stop()
    context.progress.phase("save")
    memory.enter("save")
    with clock.span("save"):
        state = sharding.whole_state(trainer, config)
        checkpoint_bytes = _save(model, config, context.weights, state) if team.is_first else None
        team.wait()
    return TrainResult(
        **summary.consumed(observer),
        **summary.speed(config, resolved, observer, costs, sum(team.all(peak))),
        **parameters,
        heldout=observer.heldout,
        checkpoint_bytes=checkpoint_bytes,
        **overall.memory(team, config, memory, observer),
        stopped_early=observer.stopped_early,
        micro_batch=config.train.fitted_micro_batch,
        resumed_at_steps=observer.resumed_at_steps,
        spans_seconds=clock.read() | {"train_steps": sum(step.seconds for step in observer.own_steps)},
        environment=resolved.environment(other_load),
        energy_wh=energy.read().get("train"),
        model_revision=getattr(model.config, "_commit_hash", None),
    )


def fitted(context: Context) -> RunConfig:
    """The run's description, with the micro-batch that the stage `fit` found in the place of `auto`."""
    config = context.config
    if config.train.micro_batch != "auto":
        return config
    found = from_json(Fit, (context.folder / "fit.json").read_bytes())
    return replace(config, train=replace(config.train, micro_batch=found.micro_batch))


def order_of(config: RunConfig, rows: prepare.Prepared) -> list[int]:
    """The training examples in the order of training."""
    return data.training_order(
        [data.row_length(row) for row in rows.train],
        seed=config.seed,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        max_steps=config.train.max_steps,
    )


def _save(model: Any, config: RunConfig, folder: Path, state: Any = None) -> int | None:
    """Write the weights, then the marker that they are whole. Returns their bytes; None: a trial keeps none."""
    if config.trial is not None:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    checkpoints.delete_older_weights(folder)
    methods.save_trained(model, config.method, folder, state)
    flush_to_disk(folder)
    (folder / "complete").touch()
    shutil.rmtree(folder / checkpoints.FOLDER, ignore_errors=True)
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))
