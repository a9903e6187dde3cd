"""Score the test split: the loss of the reference answers, and greedy answers with every metric."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench.analysis import metrics
from bench.identity import data_folder
from bench.record import EvaluateResult, Sample
from bench.worker import heldout, prepare
from bench.worker.device import Device
from bench.worker.generate import generate
from bench.worker.instruments.memory import Memory
from bench.worker.loss import SupervisedHead
from bench.worker.stages.context import Context, load_tuned, write_lines


def run(context: Context) -> EvaluateResult:
    """Score the test split of the run's result."""
    rows = list(prepare.load_prepared(data_folder(context.config)).test)
    return score(context, rows, *load_tuned(context))


def score(
    context: Context, rows: list[Any], model: Any, tokenizer: Any, resolved: Device, memory: Memory
) -> EvaluateResult:
    """The loss of the rows' reference answers, and greedy answers with every metric, by a loaded model."""
    config, clock, progress = context.config, context.clock, context.progress
    memory.enter("heldout")
    progress.phase("test loss", len(rows))
    with clock.span("heldout"), heldout.inference(model, resolved):
        losses = heldout.example_losses(
            model,
            SupervisedHead(model),
            rows,
            batch_size=config.hardware.generate_batch,
            pad_id=tokenizer.pad_token_id,
            device=resolved,
            advance=progress.advance,
        )
    memory.enter("generate")
    progress.phase("generate", len(rows))
    with clock.span("generate"), heldout.inference(model, resolved):
        answers = generate(
            model,
            tokenizer,
            [row["prompt_ids"] for row in rows],
            max_new_tokens=config.task.max_new_tokens,
            batch_size=config.hardware.generate_batch,
            device=resolved,
            advance=progress.advance,
        )
    progress.phase("score")
    with clock.span("score"):
        scores = metrics.score_all(
            config.task.metrics, [a.text for a in answers], [r["reference"] for r in rows], labels=config.task.labels
        )
    samples = [
        Sample(
            row["example_id"], row["prompt"], row["reference"], answer.text, score, nats, tokens, answer.cut_at_limit
        )
        for row, answer, score, (nats, tokens) in zip(rows, answers, scores, losses, strict=True)
    ]
    write_lines(context.folder / "samples.jsonl.gz", (asdict(sample) for sample in samples))
    generated = sum(answer.tokens for answer in answers)
    return EvaluateResult(
        examples=len(samples),
        scores={name: sum(s.scores[name] for s in samples) / len(samples) for name in config.task.metrics},
        heldout_loss=heldout.mean_loss(losses),
        heldout_tokens=sum(tokens for _, tokens in losses),
        generated_tokens=generated,
        generate_tokens_per_second=generated / clock.read()["generate"],
        cut_at_limit=sum(answer.cut_at_limit for answer in answers),
        memory=list(memory.read().values()),
        spans_seconds=clock.read(),
        environment=resolved.environment(context.load.read()),
    )
