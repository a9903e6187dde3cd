"""The evaluation stage: the test split's held-out loss, and greedy answers with every metric.

Every example's answer, scores and loss are kept in `samples.jsonl.gz`, so that differences between runs are paired.

    >>> run(context).scores
    {'rougeL': 0.41}
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from bench import metrics
from bench.config import RunConfig
from bench.identity import data_folder
from bench.mistakes import ConfigurationError
from bench.record import EvaluateResult, Sample
from bench.worker import data, device, methods, models
from bench.worker.device import Device
from bench.worker.instruments.memory import Memory
from bench.worker.loss import SupervisedHead, example_losses, inference, mean_loss
from bench.worker.main import Context, DivergedError, write_lines
from bench.worker.sources import shortened


def run(context: Context) -> EvaluateResult:
    """Score the test split: the loss of the reference answers, and greedy answers with every metric."""
    config, clock, progress = context.config, context.clock, context.progress
    rows = list(data.load_prepared(data_folder(config)).test)
    if config.method.trains == "unknown":
        return _given(context, rows)
    model, tokenizer, resolved, memory = load_tuned(context)
    how = dict[str, Any](batch_size=config.hardware.generate_batch, device=resolved, advance=progress.advance)
    losses = _test_losses(context, memory, model, rows, pad_id=tokenizer.pad_token_id, **how)
    memory.enter("generate")
    progress.phase("generate", len(rows))
    with clock.span("generate"), inference(model, resolved):
        prompts = [row["prompt_ids"] for row in rows]
        how |= {"max_new_tokens": config.task.max_new_tokens, "header": answer_header(tokenizer, rows[0])}
        answers = generate(model, tokenizer, prompts, **how)
    progress.phase("score")
    with clock.span("score"):
        scored = score(config, rows, [answer.text for answer in answers])
    samples = [
        Sample(row["example_id"], row["prompt"], row["reference"], answer.text, scores, *loss, answer.cut_at_limit, bad)
        for row, answer, scores, loss, bad in zip(rows, answers, scored.scores, losses, scored.problems, strict=True)
    ]
    write_lines(context.folder / "samples.jsonl.gz", map(asdict, samples))
    return EvaluateResult(
        examples=len(samples),
        scores=metrics.means(scored.scores),
        heldout_loss=mean_loss(losses),
        heldout_tokens=sum(tokens for _, tokens in losses),
        generated_tokens=(generated := sum(answer.tokens for answer in answers)),
        generate_tokens_per_second=generated / clock.read()["generate"],
        prompt_tokens=sum(map(len, prompts)),
        cut_at_limit=sum(answer.cut_at_limit for answer in answers),
        memory=list(memory.read().values()),
        spans_seconds=clock.read(),
        environment=resolved.environment(context.load.read()),
        scales=scored.scales,
        unscored=_unscored(samples),
        blind=blind(config, rows),
        model_revision=getattr(model.config, "_commit_hash", None),
    )


def _given(context: Context, rows: Sequence[Mapping[str, Any]]) -> EvaluateResult:
    """Score predictions that something else made: {"id": ..., "prediction": ...} a line, for each test example.

    Raises:
        ConfigurationError: a line that is none; ids that are missing, unknown or given twice.
    """
    found, problems = _predictions(context.weights)
    config = context.config
    wanted = [row["example_id"] for row in rows]
    for what, ids in (("have no prediction", [i for i in wanted if i not in found]),
                      ("are none of the test examples'", [i for i in found if i not in set(wanted)])):  # fmt: skip
        problems += [f"{len(ids)} ids {what}, such as {ids[0]!r}"] if ids else []
    if problems:
        how = f"ids are those of samples.jsonl.gz of any run of the task, such as {wanted[0]!r}"
        raise ConfigurationError([f"{context.weights}: {problem}; {how}" for problem in shortened(problems, 5)])
    scored = score(config, rows, [found[identity] for identity in wanted])
    samples = [
        Sample(row["example_id"], row["prompt"], row["reference"], found[row["example_id"]], scores, None, 0, None, bad)
        for row, scores, bad in zip(rows, scored.scores, scored.problems, strict=True)
    ]
    write_lines(context.folder / "samples.jsonl.gz", map(asdict, samples))
    return EvaluateResult(
        examples=len(samples),
        scores=metrics.means(scored.scores),
        heldout_loss=None,
        heldout_tokens=None,
        generated_tokens=None,
        generate_tokens_per_second=None,
        cut_at_limit=None,
        memory=[],
        spans_seconds=context.clock.read(),
        environment=device.resolve(config).environment(context.load.read()),  # of the scoring
        scales=scored.scales,
        unscored=_unscored(samples),
        blind=blind(config, rows),
    )


def _predictions(file: Path) -> tuple[dict[str, str], list[str]]:
    """(id -> prediction, what is wrong with lines)."""
    found, problems = dict[str, str](), list[str]()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            identity, text = str(row["id"]), row["prediction"]
        except (ValueError, KeyError, TypeError):
            problems.append(f"line {number} is not an object with id and prediction")
            continue
        problems += [f"line {number}: id {identity!r} is given twice"] if identity in found else []
        problems += [] if isinstance(text, str) else [f"line {number}: prediction is no text"]
        found[identity] = str(text)
    return found, problems


def _test_losses(context: Context, memory: Memory, model: Any, rows: list[Any], **how: Any) -> list[tuple[float, int]]:
    """(nats, tokens) of each reference answer; DivergedError where they are not finite."""
    memory.enter("heldout")
    context.progress.phase("test loss", len(rows))
    with context.clock.span("heldout"), inference(model, how["device"]):
        losses = example_losses(model, SupervisedHead(model), rows, **how)
    if not math.isfinite(mean_loss(losses)):
        raise DivergedError("nothing more is evaluated: the test loss is not finite")
    return losses


def score(config: RunConfig, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> metrics.Scored:
    """Every metric of the task on answers to prepared test examples; own metrics see each example's columns."""
    return metrics.score_all(config.task.metrics, answers, [row["reference"] for row in rows], _examples(config, rows))


def blind(config: RunConfig, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Built-in metric -> references of prepared test examples that it cannot read."""
    return metrics.blind(config.task.metrics, [row["reference"] for row in rows], _examples(config, rows))


def _examples(config: RunConfig, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    labels = config.task.labels or data.load_prepared(data_folder(config)).summary.labels
    return [
        {**json.loads(row.get("columns") or "{}"), "labels": labels}
        | {name: row[name] for name in ("example_id", "prompt", "reference")}
        for row in rows
    ]


def _unscored(samples: Sequence[Sample]) -> dict[str, str]:
    """Metric -> on how many examples it failed, and the first of them with its reason."""
    found: dict[str, list[str]] = {}
    for sample in samples:
        for name, reason in sample.unscored.items():
            found.setdefault(name, []).append(f"{sample.example_id}: {reason}")
    return {name: f"{len(of)} of {len(samples)} examples, first {of[0]}" for name, of in found.items()}


def load_tuned(context: Context) -> tuple[Any, Any, Device, Memory]:
    """(model, tokenizer, device, memory instrument): the run's result, ready for evaluation."""
    source, tokenizer, resolved, memory = opened(context)
    model = load_point(context, source, tokenizer, resolved, context.weights)
    resolved = replace(resolved, attention=model.config._attn_implementation)  # what the model took
    context.load.start()  # other load counts from here: evaluation, not loading
    return model, tokenizer, resolved, memory


def opened(context: Context) -> tuple[str, Any, Device, Memory]:
    """(where the base is, tokenizer, device, memory instrument) of an evaluation; its phase is then "load"."""
    config = context.config
    resolved = device.resolve(config)
    # Left-padded generation and shared prefixes need masks, which flash attention does not take.
    resolved = replace(resolved, attention="eager" if config.hardware.attention == "eager" else "sdpa")
    memory = context.measure_on(resolved)
    context.progress.phase("load")
    memory.enter("load")
    source = models.locate(config.model, context.cache)
    return source, models.load_tokenizer(config.model, source), resolved, memory


def load_point(context: Context, source: str, tokenizer: Any, device: Device, weights: Path) -> Any:
    """The model with a folder of the run's weights, ready for evaluation."""
    config = context.config
    with context.clock.span("load"):
        how = {"attn_implementation": device.attention}
        model = methods.load_trained(config, source, weights, device.type, device.compute_dtype, **how)
    if broken := models.not_finite(model):
        raise DivergedError(f"nothing is evaluated: {broken[0]} is not finite")
    if not config.untrained:
        _refuse_another_base(context, getattr(model.config, "_commit_hash", None))
    stop_as_taught(model, config, tokenizer)
    models.take_rows_together(model)
    return model


def stop_as_taught(model: Any, config: RunConfig, tokenizer: Any) -> None:
    """Let answers end at the tokens at which the reference answers do."""
    answers = data.load_prepared(data_folder(config)).test["answer_ids"]
    models.stop_at(model, {ids[-1] for ids in answers} | {tokenizer.eos_token_id})


def _refuse_another_base(context: Context, commit: str | None) -> None:
    """By its name alone a hub's model is the newest, which may be newer than the one that was trained."""
    if commit is None:
        return
    trained = json.loads((context.folder / "train.json").read_bytes()).get("model_revision")
    if trained and commit != trained:
        problem = f"model.revision: the hub's newest {context.config.model.location} is {commit}; trained was {trained}"
        raise ConfigurationError([f"{problem}. Set model.revision to one of them"])


@dataclass(frozen=True)
class Answer:
    """A greedy answer of the model."""

    text: str
    tokens: int  # generated, the end token included
    cut_at_limit: bool  # max_new_tokens came before the end token
    ids: tuple[int, ...] = ()  # the generated tokens, without the end token


def answer_header(tokenizer: Any, row: Mapping[str, Any]) -> str:
    """What the chat template lets every answer begin with, such as an empty thought; no part of what is scored.

    Args:
        row: any row of the prepared data.
    """
    text: str = tokenizer.decode(row["answer_ids"], skip_special_tokens=True)
    header, reference, _ = text.rpartition(row["reference"])
    return header if reference and header.strip() else ""


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, batch_size: int,
    device: Device, advance: Callable[[int], None] = lambda done: None, header: str = "",
) -> list[Answer]:  # fmt: skip
    """Decode greedily; answers come in the prompts' order, their texts without the template's `header`.

    The prompts are batched longest first, as many at a time as `data.batches` has it for prompt and answer: little
    padding, and a lack of memory shows in the first batch.
    """
    models.stop_at(model, {tokenizer.eos_token_id})
    ends = set(model.generation_config.eos_token_id)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,  # an unset field would be filled from the model's own defaults
        num_beams=1,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
    )
    answers: dict[int, Answer] = {}
    for chosen in data.batches([len(prompt) + max_new_tokens for prompt in prompts], batch_size):
        rows = [torch.tensor(prompts[i]) for i in chosen]
        left: dict[str, Any] = {"batch_first": True, "padding_side": "left"}  # where decoding needs the padding
        input_ids = pad_sequence(rows, padding_value=tokenizer.pad_token_id, **left)  # (batch, length)
        mask = pad_sequence([torch.ones_like(row) for row in rows], **left)
        output = model.generate(
            input_ids=input_ids.to(device.type), attention_mask=mask.to(device.type), generation_config=config
        )
        for i, row in zip(chosen, output[:, input_ids.shape[1] :].tolist(), strict=True):
            stop = next((k for k, token in enumerate(row) if token in ends), None)
            kept = row if stop is None else row[:stop]
            text = tokenizer.decode(kept, skip_special_tokens=True).removeprefix(header)
            answers[i] = Answer(text, len(kept) + (stop is not None), stop is None, tuple(kept))
        advance(len(answers))
    return [answers[i] for i in range(len(prompts))]
