"""The frontier stage: what was learned, and what was forgotten, at points along training.

The untouched base in 16 bit, the weights that training kept behind the steps of `evaluation.points`, and the final ones
are measured alike, on the same items: loss (and, if asked for, greedy answers) of validation examples, the first items
of the suite's tasks, and KL from the base on general text and at the answers to the task's own prompts. Every item is
kept, so that forgetting can be compared at equal learning (`stats.curves`).

    >>> run(context).points[1].values[0]
    RegressionTask(task='heldout', metric='loss', value=2.81, items=64, higher_is_better=False, chance=None)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.identity import data_folder
from bench.record import HELDOUT, FrontierResult, Point, PointItem, RegressionItem, RegressionTask
from bench.worker import data, models
from bench.worker.device import Device
from bench.worker.divergence import Reference, divergence, general_texts, predictions_of, task_texts, weighted_mean
from bench.worker.evaluate import answer_header, generate, load_point, opened, score, stop_as_taught
from bench.worker.instruments.memory import Memory
from bench.worker.loss import SupervisedHead, example_losses, finite, inference
from bench.worker.main import Context, write_lines
from bench.worker.regression import run_suite, window
from bench.worker.resume import POINTS


@dataclass(frozen=True)
class _Setting:
    """What the points have in common; `rows` are the validation examples."""

    context: Context
    source: str
    tokenizer: Any
    device: Device
    memory: Memory
    rows: list[Any]

    def enter(self, phase: str, total: int | None = None) -> None:
        self.memory.enter(phase)
        self.context.progress.phase(phase, total)


def run(context: Context) -> FrontierResult:
    """Measure the base, the points that training kept, and the final weights."""
    config = context.config
    rows = list(data.load_prepared(data_folder(config)).validation)[: config.evaluation.examples]
    setting = _Setting(context, *opened(context), rows)
    points: list[Point] = []
    items: list[PointItem] = []
    reference: Reference | None = None
    for step, model in _models(setting):
        if reference is None:  # of the base, which comes first
            texts = [*general_texts(setting.tokenizer, config.suite), *task_texts(rows)]
            reference = predictions_of(model, texts, setting.device)
            context.load.start()
        tasks, own = _measured(setting, model, reference)
        points.append(Point(step, tasks))
        items += [PointItem(step, **asdict(item)) for item in own]
        del model  # before the next is loaded
    write_lines(context.folder / "frontier_items.jsonl.gz", map(asdict, items))
    return FrontierResult(
        points=points,
        memory=list(setting.memory.read().values()),
        spans_seconds=context.clock.read(),
        environment=setting.device.environment(context.load.read()),
    )


def _models(setting: _Setting) -> Iterator[tuple[int, Any]]:
    """(step, model) in the order of training, one in memory at a time; the first is the base."""
    context, device = setting.context, setting.device
    how = {"device_map": {"": device.type}, "attn_implementation": device.attention}
    base = models.load_weights(context.config.model, setting.source, dtype=device.compute_dtype, **how)
    stop_as_taught(base, context.config, setting.tokenizer)
    yield 0, base
    del base
    last = json.loads((context.folder / "train.json").read_bytes())["steps"]
    kept = {int(folder.name): folder for folder in (context.weights / POINTS).glob("*")} | {last: context.weights}
    for step, folder in sorted(kept.items()):
        setting.enter("load")
        yield step, load_point(context, setting.source, setting.tokenizer, device, folder)


def _measured(setting: _Setting, model: Any, reference: Reference) -> tuple[list[RegressionTask], list[RegressionItem]]:
    """Every measurement of one model: means, and the items behind them."""
    context, device, asked = setting.context, setting.device, setting.context.config.evaluation
    tasks, items = _heldout(setting, model)
    suite = context.config.suite
    if suite.source != "none":
        setting.enter("regression")
        smaller = replace(suite, items_per_task=min(asked.suite_items, suite.items_per_task or asked.suite_items))
        how: dict[str, Any] = {"autocast_dtype": device.autocast_dtype, "advance": context.progress.advance}
        with context.clock.span("regression"), inference(model, device):
            found = run_suite(smaller, model, setting.tokenizer, window(context.config), **how)
        tasks, items = tasks + found.tasks, items + found.items
    setting.enter("divergence", len(reference.texts))
    with context.clock.span("divergence"), inference(model, device):
        found = divergence(model, reference, device, context.progress.advance)
    return tasks + found.tasks, items + found.items


def _heldout(setting: _Setting, model: Any) -> tuple[list[RegressionTask], list[RegressionItem]]:
    """Loss of the validation examples, and the scores of their greedy answers where they are asked for."""
    context, rows, tokenizer, config = setting.context, setting.rows, setting.tokenizer, setting.context.config
    how: dict[str, Any] = {"batch_size": config.hardware.generate_batch, "device": setting.device}
    how["advance"] = context.progress.advance
    setting.enter("heldout", len(rows))
    with context.clock.span("heldout"), inference(model, setting.device):
        losses = example_losses(model, SupervisedHead(model), rows, pad_id=tokenizer.pad_token_id, **how)
    ids = [row["example_id"] for row in rows]
    items = [
        RegressionItem(HELDOUT, name, "loss", finite(nats / tokens), float(tokens))
        for name, (nats, tokens) in zip(ids, losses, strict=True)
    ]
    better = {"loss": False}
    if config.evaluation.answers:
        setting.enter("generate", len(rows))
        with context.clock.span("generate"), inference(model, setting.device):
            limit, header = config.task.max_new_tokens, answer_header(tokenizer, rows[0])
            prompts = [row["prompt_ids"] for row in rows]
            answers = generate(model, tokenizer, prompts, max_new_tokens=limit, header=header, **how)
        scored = score(config, rows, [answer.text for answer in answers])
        better |= {name: scale.higher_is_better for name, scale in scored.scales.items()}
        items += [
            RegressionItem(HELDOUT, name, metric, finite(value))
            for name, scores in zip(ids, scored.scores, strict=True)
            for metric, value in scores.items()
        ]
    by_metric = {metric: [item for item in items if item.metric == metric] for metric in better}
    means = [
        RegressionTask(HELDOUT, metric, weighted_mean(own), len(own), better[metric])
        for metric, own in by_metric.items()
        if own
    ]
    return means, items
