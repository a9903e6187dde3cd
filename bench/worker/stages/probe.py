"""Does a micro-batch fit? Two steps of training at the longest examples of the data, and the peak of their memory.

Two, because the optimizer's state is there from the second one on; each of two micro-batches where a step has several,
so that gradients are there while the next is computed. What comes before the first step in a run comes before it here,
because a process keeps memory of it. Nothing is saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from bench.identity import data_folder
from bench.record import ProbeResult
from bench.worker import budget, data, device, methods, train
from bench.worker import data as prepare
from bench.worker import loss as heldout
from bench.worker.instruments import tokens as flops
from bench.worker.instruments.energy import open_energy
from bench.worker.main import Context
from bench.worker.observe import Observer
from bench.worker.train import load_trainable, order_of

STEPS = 2


def run(context: Context) -> ProbeResult:
    """Train on the longest examples, with everything as in the run that is to be fitted."""
    config = context.config
    rows = prepare.load_prepared(data_folder(config))
    resolved = device.resolve(config, data.steps_of(order_of(config, rows), config.train.batch_size))
    budget.enforce(config.hardware, resolved.type)
    flops.matmul_peak_flops_per_second(resolved.type, resolved.compute_dtype, resolved.synchronize)
    memory = context.measure_on(resolved)
    model, head, tokenizer = load_trainable(context, resolved, memory)
    micro_batch = config.train.fitted_micro_batch
    of_step = min(config.train.batch_size, 2 * micro_batch)
    config = replace(config, trial=None, train=replace(config.train, batch_size=of_step, max_steps=STEPS))
    longest = _longest(rows.train, micro_batch)
    validation = _longest(rows.validation, micro_batch)

    def measure_heldout() -> float:
        with heldout.inference(model, resolved):
            size, pad_id = micro_batch, tokenizer.pad_token_id
            losses = heldout.example_losses(model, head, validation, batch_size=size, pad_id=pad_id, device=resolved)
        return heldout.mean_loss(losses)

    observer = Observer(
        folder=context.folder,
        config=config,
        total_steps=STEPS,
        clock=context.clock,
        memory=memory,
        energy=open_energy(resolved.type),
        progress=context.progress,
        measure_heldout=measure_heldout,
    )
    arguments = train.training_arguments(config, resolved, STEPS, context.folder / "trainer")
    trainer = train.SftTrainer(
        model=model,
        args=arguments,
        optimizers=(methods.make_optimizer(model, config.method, arguments), None),
        train_dataset=rows.train,
        callbacks=[observer],
        head=head,
        rows=(longest * math.ceil(of_step / len(longest)))[:of_step] * STEPS,
        pad_id=tokenizer.pad_token_id,
        packing=config.train.packing,
        observer=observer,
    )
    trainer.train()
    return ProbeResult(memory.read()["train"].peak_bytes, budget.budget_bytes(config.hardware, resolved.type))


def _longest(rows: Iterable[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: -data.row_length(row))[:count]
