"""What serving the run's result costs: latency and memory of every form, what merging changed, many adapters.

Runs after the evaluation, on weights that are finished; it changes nothing that was measured before.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from bench.config import ServeConfig
from bench.identity import data_folder
from bench.record import Adapters, Fidelity, LogitDifference, ServeResult
from bench.worker import device, heldout, methods, models, prepare
from bench.worker.instruments.memory import Memory
from bench.worker.loss import SupervisedHead
from bench.worker.serving import adapters, fidelity, latency
from bench.worker.serving.form import Form
from bench.worker.serving.forms import Origin, build, load, load_exact
from bench.worker.stages.context import Context, write_lines


def run(context: Context) -> ServeResult:
    """Build every form, time them in turn, set them against the evaluated one, and share a base among adapters."""
    config, clock = context.config, context.clock
    resolved = device.resolve(config)
    memory = context.measure_on(resolved)
    rows = list(prepare.load_prepared(data_folder(config)).test)
    context.progress.phase("build")
    memory.enter("build")
    source = models.locate(config.model, context.cache)
    tokenizer = models.load_tokenizer(config.model, source)
    at = Origin(config, source, context.weights, resolved, tokenizer)
    forms = methods.served_forms(config.method)
    with clock.span("build"):
        for form in forms:
            build(form, at)
    prompts = latency.Prompts(rows)
    context.load.start()
    with clock.span("latency"):
        served, generations = latency.measure(
            forms, at, prompts, config.serve, clock=clock, memory=memory, progress=context.progress
        )
    environment = resolved.environment(context.load.read())
    faithful, noise, as_evaluated = _fidelity(context, forms, at, rows, memory)
    many, skipped = _adapters(context, forms, at, prompts, memory)
    return ServeResult(
        settings=asdict(config.serve),
        forms=served,
        generations=generations,
        fidelity=faithful,
        rounding=noise,
        answers_as_evaluated=as_evaluated,
        adapters=many,
        skipped=skipped,
        memory=list(memory.read().values()),
        spans_seconds=clock.read(),
        environment=environment,
        price_usd_per_hour=config.hardware.price_usd_per_hour,
    )


def _fidelity(
    context: Context, forms: Sequence[Form], at: Origin, rows: list[dict[str, Any]], memory: Memory
) -> tuple[list[Fidelity], LogitDifference | None, int | None]:
    """(every form against the evaluated one, rounding alone, answers equal to the evaluation's); none for a base."""
    rows = rows[: context.config.serve.fidelity_examples]
    tuned = [form for form in forms if form.base is not None]  # the first is the one that is evaluated
    if not tuned or not rows:
        return [], None, None
    memory.enter("fidelity")
    seen: dict[str, fidelity.Observed] = {}
    rounding = None
    with context.clock.span("fidelity"):
        for form in tuned:
            context.progress.phase(f"answers of {form.name}", len(rows))
            model = load(form, at, as_evaluated=True)
            progress = context.progress.advance
            seen[form.name] = fidelity.observe(
                form.name, model, context.config, at.tokenizer, rows, at.device, progress
            )
            if form is tuned[0]:
                rounding = _rounding(model, at, rows, seen[form.name])
            del model
        exact = _exact_logits(tuned[0], at, rows)
    memory.stop()
    reference = seen[tuned[0].name]
    write_lines(
        context.folder / "served_answers.jsonl.gz", (asdict(one) for form in seen.values() for one in form.answers)
    )
    compared = [fidelity.compared(observed, reference, exact) for observed in seen.values()]
    return compared, rounding, _as_evaluated(context, reference)


def _rounding(model: Any, at: Origin, rows: list[dict[str, Any]], observed: fidelity.Observed) -> LogitDifference:
    """The same model on the same rows, in batches of another size."""
    pad_id, batch = at.tokenizer.pad_token_id, fidelity.OTHER_BATCH
    with heldout.inference(model, at.device):
        other = fidelity.answer_logits(model, SupervisedHead(model), rows, pad_id, at.device, batch)
    return fidelity.logit_difference(other, observed.logits)


def _exact_logits(form: Form, at: Origin, rows: list[dict[str, Any]]) -> torch.Tensor | None:
    """The evaluated form's logits in fp32; None where twice its memory is too much for the device."""
    in_fp32 = replace(at.device, compute_dtype=torch.float32)
    try:
        model = load_exact(form, at)
        with heldout.inference(model, in_fp32):
            pad_id = at.tokenizer.pad_token_id
            return fidelity.answer_logits(model, SupervisedHead(model), rows, pad_id, in_fp32)
    except torch.OutOfMemoryError:
        return None


def _as_evaluated(context: Context, reference: fidelity.Observed) -> int | None:
    """How many of the reference's answers are those that the evaluation recorded."""
    try:
        with gzip.open(context.folder / "samples.jsonl.gz", "rt", encoding="utf-8") as file:
            samples = [json.loads(line) for line in file]
    except (OSError, EOFError, ValueError):
        return None
    recorded = {sample["example_id"]: sample["prediction"] for sample in samples}
    return sum(recorded.get(answer.example_id) == answer.prediction for answer in reference.answers)


def _adapters(
    context: Context, forms: Sequence[Form], at: Origin, prompts: latency.Prompts, memory: Memory
) -> tuple[Adapters | None, dict[str, str]]:
    """(many adapters on one base, what was not measured and why)."""
    serve: ServeConfig = context.config.serve
    beside = next((form for form in forms if form.adapter == "beside"), None)
    if beside is None or not serve.adapters:
        return None, {}
    adapter = context.config.method.adapter
    if adapter is not None and adapter.use_dora:
        return None, {"adapters": "PEFT answers no batch of several adapters with DoRA"}
    merged = next(form for form in forms if form.adapter == "merged" and form.scheme is None)
    with context.clock.span("adapters"):
        found = adapters.measure(
            beside, merged, at, prompts, serve, clock=context.clock, memory=memory, progress=context.progress
        )
    return found, {}
