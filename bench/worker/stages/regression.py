"""Run the regression suite on the tuned (or untouched) model, and see how far its predictions have moved."""

from __future__ import annotations

from dataclasses import asdict

import torch

from bench.record import RegressionResult
from bench.worker import device, heldout, models
from bench.worker.divergence import Reference, divergence, reference_of
from bench.worker.regression import run_suite
from bench.worker.stages.context import Context, load_tuned, write_lines


def run(context: Context) -> RegressionResult:
    """Run the regression suite on the tuned (or untouched) model."""
    config = context.config
    reference, unknown = _reference(context)
    model, tokenizer, resolved, memory = load_tuned(context)
    memory.enter("regression")
    context.progress.phase("regression")
    with context.clock.span("regression"), heldout.inference(model, resolved):
        outcome = run_suite(
            config.suite,
            model,
            tokenizer,
            context.tables,
            max_length=min(config.train.max_length, config.model.max_context),
            autocast_dtype=resolved.autocast_dtype,
        )
    tasks, items = outcome.tasks, outcome.items
    if reference is not None:
        memory.enter("divergence")
        context.progress.phase("divergence")
        with context.clock.span("divergence"), heldout.inference(model, resolved):
            moved = divergence(model, reference, resolved)
        tasks, items = tasks + moved.tasks, items + moved.items
    write_lines(context.folder / "regression_items.jsonl.gz", (asdict(item) for item in items))
    return RegressionResult(
        suite=config.suite.name,
        tasks=tasks,
        memory=list(memory.read().values()),
        spans_seconds=context.clock.read(),
        environment=resolved.environment(context.load.read()),
        divergence_unknown=unknown,
    )


def _reference(context: Context) -> tuple[Reference | None, str | None]:
    """(the base's predictions, why there are none); `prepare` has stored them, unless the base is a plain folder."""
    context.progress.phase("reference")
    config = context.config
    resolved = device.resolve(config)
    source = models.locate(config.model, context.cache)
    tokenizer = models.load_tokenizer(config.model, source)
    try:
        with context.clock.span("reference"):
            return reference_of(config, source, tokenizer, resolved), None
    except torch.OutOfMemoryError:
        return None, "the base does not fit this device in 16 bit"
