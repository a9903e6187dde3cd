"""Run the regression suite on the tuned (or untouched) model."""

from __future__ import annotations

from dataclasses import asdict

from bench.spec.record import RegressionResult
from bench.worker import heldout
from bench.worker.regression import run_suite
from bench.worker.stages.context import Context, load_tuned, write_lines


def run(context: Context) -> RegressionResult:
    """Run the regression suite on the tuned (or untouched) model."""
    config = context.config
    model, tokenizer, resolved, memory = load_tuned(context)
    memory.enter("regression")
    context.progress.phase("regression")
    with context.clock.span("regression"), heldout.inference(model, resolved):
        outcome = run_suite(
            config.suite,
            model,
            tokenizer,
            context.cache,
            max_length=min(config.train.max_length, config.model.max_context),
            autocast_dtype=resolved.autocast_dtype,
        )
    write_lines(context.folder / "regression_items.jsonl.gz", (asdict(item) for item in outcome.items))
    return RegressionResult(
        suite=config.suite.name,
        tasks=outcome.tasks,
        memory=list(memory.read().values()),
        spans_seconds=context.clock.read(),
        environment=resolved.environment(context.load.read()),
    )
